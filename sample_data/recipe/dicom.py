"""Write a scan as a DICOM series of single-frame images with anonymous headers, the same bytes each time."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from sample_data.recipe.anatomy import Array
from sample_data.recipe.scanner import Scan
from sample_data.recipe.subjects import Person

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CT_INTERCEPT = -1024
DATE = "20000101"


def write_series(
    folder: Path,
    subject: str,
    person: Person,
    scan: Scan,
    modality: Literal["MR", "CT"],
    leave_out: Collection[int] = (),
) -> None:
    """Write one file per slice.

    Parameters
    ----------
    folder
        The folder to write to; made if it does not exist.
    subject
        Pseudonym of the patient.
    person
        Synthetic age and sex.
    scan
        Slices run along its third axis; columns along the first, rows along the second.
    modality
        ``MR`` (MR Image Storage, 16-bit magnitude) or ``CT`` (CT Image Storage, rescaled to Hounsfield units).
    leave_out
        Indices of slices not to write, for a faulty series.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(scan.grid.shape[2]):
        if index in leave_out:
            continue
        image = _file(subject, f"{modality} {index}", MRImageStorage if modality == "MR" else CTImageStorage)
        _describe_patient(image, subject, person)
        _describe_series(image, subject, modality)
        _describe_position(image, scan, index)
        _store_pixels(image, scan, index)
        image.save_as(folder / f"IM{index + 1:04d}.dcm", enforce_file_format=True)


def write_text_report(path: Path, subject: str, person: Person) -> None:
    """Write a DICOM object that is not an image: a structured report of one sentence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = _file(subject, "report", BasicTextSRStorage)
    _describe_patient(report, subject, person)
    report.Modality = "SR"
    report.SeriesInstanceUID = _uid(subject, "SR series")
    report.SeriesNumber = 99
    report.InstanceNumber = 1
    report.ReferencedPerformedProcedureStepSequence = []
    report.PerformedProcedureCodeSequence = []
    report.CompletionFlag = "COMPLETE"
    report.VerificationFlag = "UNVERIFIED"
    report.ContentDate = DATE
    report.ContentTime = "000000"
    report.ValueType = "CONTAINER"
    report.ContinuityOfContent = "SEPARATE"
    report.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging report")]
    report.ContentSequence = [_sentence("A made-up report, here to be refused: it holds no image.")]
    report.save_as(path, enforce_file_format=True)


def _file(subject: str, instance: str, sop_class: UID) -> FileDataset:
    """Start a file with the identifiers every DICOM object has."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = _uid(subject, instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "SAMPLE_DATA"
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID = _uid(subject, "study")
    return image


def _describe_patient(image: Dataset, subject: str, person: Person) -> None:
    image.PatientName = subject
    image.PatientID = subject
    image.PatientBirthDate = ""
    image.PatientSex = person.sex
    image.PatientAge = f"{person.age:03d}Y"
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "synthetic: there is no patient"
    image.StudyDate = DATE
    image.StudyTime = "000000"
    image.StudyID = "1"
    image.AccessionNumber = ""
    image.ReferringPhysicianName = ""
    image.Manufacturer = "synthetic"


def _describe_series(image: Dataset, subject: str, modality: Literal["MR", "CT"]) -> None:
    image.Modality = modality
    image.SeriesInstanceUID = _uid(subject, f"{modality} series")
    image.FrameOfReferenceUID = _uid(subject, f"{modality} frame")
    image.PositionReferenceIndicator = ""
    image.SeriesNumber = 1
    image.AcquisitionNumber = 1
    image.BodyPartExamined = "HEAD"
    image.PatientPosition = "HFS"
    if modality == "MR":
        _describe_mr(image)
    else:
        _describe_ct(image)


def _describe_mr(image: Dataset) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.SeriesDescription = "T1w 3D"
    image.ScanningSequence = "GR"
    image.SequenceVariant = ["SP", "MP"]
    image.ScanOptions = ""
    image.MRAcquisitionType = "3D"
    image.RepetitionTime = 2300
    image.EchoTime = 3
    image.InversionTime = 900
    image.FlipAngle = 9
    image.EchoTrainLength = 1
    image.MagneticFieldStrength = 3


def _describe_ct(image: Dataset) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SeriesDescription = "Head without contrast"
    image.KVP = 120
    image.RescaleSlope = 1
    image.RescaleIntercept = CT_INTERCEPT
    image.RescaleType = "HU"
    image.WindowCenter = 40
    image.WindowWidth = 80


def _describe_position(image: Dataset, scan: Scan, index: int) -> None:
    """Write the position of a slice, in the LPS millimetres of DICOM."""
    affine = RAS_TO_LPS @ scan.grid.affine
    spacing = scan.grid.spacing
    directions = affine[:3, :3] / spacing
    image.ImageOrientationPatient = _decimals(np.concatenate([directions[:, 0], directions[:, 1]]))
    image.ImagePositionPatient = _decimals(affine[:3, 2] * index + affine[:3, 3])
    image.PixelSpacing = _decimals(spacing[[1, 0]])
    image.SliceThickness = _decimals(spacing[2:])[0]
    image.SpacingBetweenSlices = image.SliceThickness
    image.InstanceNumber = index + 1


def _store_pixels(image: Dataset, scan: Scan, index: int) -> None:
    """Write a slice as unsigned 16-bit values, rows first."""
    stored = scan.voxels[:, :, index].T.astype(np.int64) - int(image.get("RescaleIntercept", 0))
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = stored.shape
    image.BitsAllocated = 16
    image.BitsStored = 16 if image.Modality == "CT" else 12
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = 0
    image.BurnedInAnnotation = "NO"
    image.PixelData = stored.astype("<u2").tobytes()


def _decimals(values: Array) -> list[str]:
    """Return decimal strings of at most 16 characters, as DICOM requires."""
    return [f"{value:.8f}"[:16] for value in np.where(np.abs(values) < 1e-9, 0.0, values)]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue = value
    code.CodingSchemeDesignator = scheme
    code.CodeMeaning = meaning
    return code


def _sentence(text: str) -> Dataset:
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "TEXT"
    item.ConceptNameCodeSequence = [_code("121071", "DCM", "Finding")]
    item.TextValue = text
    return item


def _uid(*names: str) -> UID:
    """Return a UID that depends on the names alone."""
    return generate_uid(entropy_srcs=["anomaly sample data", *names])
