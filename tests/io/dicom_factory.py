"""Small DICOM series made in memory."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def uid(*parts: object) -> str:
    return str(generate_uid(entropy_srcs=[str(part) for part in parts]))


def make_slice(
    index: int,
    position: Sequence[float],
    pixels: np.ndarray[Any, Any],
    modality: str = "MR",
    series: str = "series",
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (2.0, 1.5),
    **values: Any,
) -> FileDataset:
    """Return one single-frame image; ``values`` are further elements by keyword, ``None`` removes one."""
    sop_class = CTImageStorage if modality == "CT" else MRImageStorage
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(series, "instance", index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = uid("study")
    ds.SeriesInstanceUID = uid(series)
    ds.FrameOfReferenceUID = uid("frame")
    ds.PatientName = "Doe^Jane"
    ds.PatientID = "HOSPITAL-4711"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "F"
    ds.PatientAge = "045Y"
    ds.StudyDate = "20200101"
    ds.StudyTime = "120000"
    ds.StudyID = "1"
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.Manufacturer = "SIEMENS"
    ds.Modality = modality
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    ds.SeriesDescription = "head" if modality == "CT" else "t1_mprage"
    ds.SeriesNumber = 3
    ds.InstanceNumber = index + 1
    ds.PatientPosition = "HFS"
    ds.ImageOrientationPatient = [float(f"{v:.9f}") for v in orientation]
    ds.ImagePositionPatient = [float(f"{v:.6f}") for v in position]
    ds.PixelSpacing = list(spacing)
    ds.SliceThickness = 3.0
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.astype("<i2" if pixels.dtype.kind == "i" else "<u2").tobytes()
    if modality == "CT":
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    else:
        ds.EchoTime, ds.RepetitionTime, ds.ScanningSequence = 3.0, 2000.0, "GR"
    for keyword, value in values.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def make_series(
    n_slices: int = 6,
    step: Sequence[float] = (0.0, 0.0, 3.0),
    shape: tuple[int, int] = (8, 10),
    start: Sequence[float] = (-10.0, -20.0, 5.0),
    seed: int = 0,
    **values: Any,
) -> list[FileDataset]:
    """Return a stack of slices ``(rows, columns)`` of random pixels, each ``step`` LPS mm from the one before."""
    generator = np.random.default_rng(seed)
    return [
        make_slice(
            k, np.add(start, np.multiply(step, k)), generator.integers(0, 2000, shape, dtype=np.uint16), **values
        )
        for k in range(n_slices)
    ]


def encode(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def with_raw_value(ds: FileDataset, keyword: str, raw: bytes) -> bytes:
    """Return a file of which an element has bytes that need not follow the rules of its VR."""
    tag = Tag(keyword)
    if tag not in ds:
        ds[tag] = DataElement(tag, dictionary_VR(tag), None)
    content, padded = encode(ds), raw + b" " * (len(raw) % 2)
    start = content.index(struct.pack("<HH", tag.group, tag.element) + dictionary_VR(tag).encode()) + 6
    (length,) = struct.unpack_from("<H", content, start)
    return content[:start] + struct.pack("<H", len(padded)) + padded + content[start + 2 + length :]


def without_preamble(ds: FileDataset) -> bytes:
    """Return a file that begins with its file meta information."""
    return encode(ds)[132:]


def without_meta(ds: FileDataset, explicit: bool = False) -> bytes:
    """Return a file that begins with its data set, little endian."""
    bare = Dataset(ds)
    stream = io.BytesIO()
    bare.save_as(stream, implicit_vr=not explicit, little_endian=True, enforce_file_format=False)
    return stream.getvalue()


def write_series(folder: Path, datasets: Sequence[Dataset | bytes], suffix: str = ".dcm") -> Path:
    """Write a series to a folder, files named in another order than the slices lie."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, ds in enumerate(datasets):
        (folder / f"IM{(index * 7) % 101:04d}_{index}{suffix}").write_bytes(
            ds if isinstance(ds, bytes) else encode(ds)
        )
    return folder


def write_zip(path: Path, datasets: Sequence[Dataset | bytes], folder: str = "export") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, ds in enumerate(datasets):
            archive.writestr(f"{folder}/IM{index:04d}", ds if isinstance(ds, bytes) else encode(ds))
    return path
