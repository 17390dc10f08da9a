"""Read the header of one DICOM file.

A header is never lost: a file that is damaged has a header too, which says what is wrong with it. A value that
cannot be parsed counts as missing, so that it makes no other value unreadable.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, MediaStorageDirectoryStorage
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from anomaly.io.contrast import CONTRAST_TAGS, classify_header
from anomaly.io.file_types import DICOM_ENDINGS, ending_of
from anomaly.io.series_words import ImageKind
from anomaly.io.stored_file import StoredFile, is_transient
from anomaly.io.vocabulary import parse_dicom_age, parse_sex

_START_BYTES = 512
_MAGIC = b"DICM"
_FIRST_GROUPS = {0x0002, 0x0008}
_PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_EXPLICIT_VRS = {vr.value.encode() for vr in VR if len(vr.value) == 2}
_LONG_VRS = {vr.value.encode() for vr in EXPLICIT_VR_LENGTH_32}
_VALUE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    struct.error,
)

_HEADER_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID",
    "PatientAge", "PatientSex", "Modality", "ImageType", "SeriesDescription", "ProtocolName", "SeriesNumber",
    "BodyPartExamined", "AcquisitionNumber", "EchoTime", "RepetitionTime", "InversionTime", "ScanningSequence",
    "AcquisitionContrast", "TemporalPositionIdentifier", "InstanceNumber", "Rows", "Columns", "NumberOfFrames",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "NumberOfSlices", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances", "InConcatenationTotalNumber",
    "NumberOfTemporalPositions",
]  # fmt: skip
_GE_RELATION, _GE_SERIES, _PHILIPS = "GEMS_RELA_01", "GEMS_SERS_01", "Philips Imaging DD 001"
_SIEMENS = "SIEMENS MR HEADER"
_PRIVATE_TAGS = [
    0x00190010, 0x0019100A, 0x00210010, 0x0021104F, 0x00250010, 0x00251007, 0x20010010, 0x20011018,
]  # fmt: skip
_HEADER_TAGS: list[BaseTag | int] = [*(Tag(k) for k in (*_HEADER_KEYWORDS, *CONTRAST_TAGS)), *_PRIVATE_TAGS]


@dataclass(frozen=True)
class ImageCounts:
    """How many images there should be by the header; None where it does not say.

    Parameters
    ----------
    slices
        Slice positions of the volume.
    acquisition
        Images of the acquisition. Many scanners count all echoes and volumes of it.
    series
        Files of the series.
    time_points
        Volumes of a time series.
    """

    slices: int | None = None
    acquisition: int | None = None
    series: int | None = None
    time_points: int | None = None


@dataclass(frozen=True)
class Header:
    """The header fields of one DICOM file that are needed. Patient name and birth date are not read.

    Parameters
    ----------
    fault
        What is wrong with the file; empty if nothing is.
    is_fault_transient
        Whether the file may be readable later.
    is_dicom
        Whether the content or the ending of the file is that of DICOM.
    series
        Identifies the series; empty if the header does not tell.
    patient, study
        PatientID and StudyInstanceUID; empty if missing.
    subject_key, session_key
        Patient and study, or what stands for them if they are missing.
    n_frames
        Number of frames; 1 if the header does not tell.
    size
        Rows and columns; zeros for an object that is not an image.
    orientation, position
        LPS direction cosines and millimetres; empty if missing or unreadable.
    is_mosaic
        Whether the image shows all slices of a volume side by side, as functional series of Siemens do.
    slice_step
        SpacingBetweenSlices, where it is the distance between the centres of slices.
    """

    file: StoredFile
    sop_class: str = ""
    sop_instance: str = ""
    series: str = ""
    subject_key: str = ""
    session_key: str = ""
    fault: str = ""
    is_fault_transient: bool = False
    is_dicom: bool = True
    patient: str = ""
    study: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    description: str = ""
    body_part: str = ""
    kind: ImageKind = field(default_factory=ImageKind)
    acquisition: str = ""
    temporal: str = ""
    instance: int = 0
    echo_time: float | None = None
    repetition_time: float | None = None
    inversion_time: float | None = None
    n_frames: int = 1
    size: tuple[int, int] = (0, 0)
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    slice_step: float | None = None
    counts: ImageCounts = ImageCounts()
    is_mosaic: bool = False
    age: float | None = None
    sex: str = ""

    @property
    def is_directory(self) -> bool:
        """Whether the file is a DICOMDIR: an index of other files."""
        return self.sop_class == MediaStorageDirectoryStorage

    @property
    def has_plane(self) -> bool:
        """Whether the header gives the plane of the image."""
        return len(self.orientation) == 6 and len(self.position) == 3


def is_dicom(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a DICOM file, with or without a preamble."""
    has_meta = start[132:136] == b"\x02\0\0\0"  # the group of the file meta information, behind a damaged magic
    return start[128:132] == _MAGIC or has_meta or _starts_with_elements(start)


def read_header(file: StoredFile, content: bytes | io.BufferedIOBase | Any) -> Header:
    """Read the header of a file.

    Parameters
    ----------
    file
        The file of the content.
    content
        Bytes of the file, or a stream of them; pixels are not read.

    Returns
    -------
    Header
        If the file is damaged or not DICOM, the header says so.

    Raises
    ------
    OSError
        If the bytes cannot be read now, and may be later.
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    starts_as_dicom = False
    try:
        start = stream.read(_START_BYTES)
        starts_as_dicom = is_dicom(start)
        if not starts_as_dicom:
            return damaged_header(file, "not DICOM" if start else "empty")
        stream.seek(0)
        return _read_elements(file, stream)
    except Exception as error:
        if is_transient(error):
            raise
        return damaged_header(file, "cut or damaged", starts_as_dicom)


def damaged_header(file: StoredFile, fault: str, starts_as_dicom: bool = False) -> Header:
    """Return the header of a file of which nothing can be read; it is DICOM by its start or by its ending."""
    is_dicom = starts_as_dicom or ending_of(file.name) in DICOM_ENDINGS
    return Header(file, fault=fault, is_dicom=is_dicom,
                  subject_key=file.folder, session_key=file.folder)  # fmt: skip


@contextmanager
def tolerant_pydicom() -> Iterator[None]:
    """Read values that violate the rules of DICOM, as many real files do, and do not print file names."""
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def read_numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Return the finite numbers of an element; empty if it is missing or one of its values is not a number."""
    try:
        numbers = tuple(float(v) for v in _values(ds, keyword))
    except _VALUE_ERRORS:
        return ()
    return numbers if np.isfinite(numbers).all() else ()


def read_number(ds: Dataset, keyword: str) -> float | None:
    """Return the first number of an element; None if it is missing or not a number."""
    numbers = read_numbers(ds, keyword)
    return numbers[0] if numbers else None


def read_text(ds: Dataset, keyword: str) -> str:
    """Return an element as text without spaces around it; empty if it is missing or unreadable."""
    try:
        value = ds.get(keyword, None)
    except _VALUE_ERRORS:
        return ""
    return "" if value is None else str(value).strip(" \0\t\r\n")


def is_multiframe_class(sop_class: str) -> bool:
    """Return whether images of a SOP class have functional groups: a geometry of their own for each frame."""
    return "Enhanced" in UID(sop_class).name


def _starts_with_elements(start: bytes) -> bool:
    """Return whether bytes are those of two data elements of the first groups of DICOM, in order."""
    first, first_end = _element_at(start, 0)
    second, _ = _element_at(start, first_end)
    return first < second and {first >> 16, second >> 16} <= _FIRST_GROUPS


def _element_at(start: bytes, offset: int) -> tuple[int, int]:
    """Return the tag and the end of the little-endian data element at an offset; the tag is 0 if there is none."""
    if len(start) < offset + 12:
        return 0, offset
    group, element = struct.unpack_from("<HH", start, offset)
    vr = start[offset + 4 : offset + 6]
    if vr in _LONG_VRS:
        value, length = offset + 12, struct.unpack_from("<L", start, offset + 8)[0]
    elif vr in _EXPLICIT_VRS:
        value, length = offset + 8, struct.unpack_from("<H", start, offset + 6)[0]
    else:
        value, length = offset + 8, struct.unpack_from("<L", start, offset + 4)[0]
    return (group << 16 | element if length % 2 == 0 else 0), value + length


def _read_elements(file: StoredFile, stream: Any) -> Header:
    has_pixels = False

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:  # noqa: ARG001 - pydicom gives all three
        nonlocal has_pixels
        has_pixels = has_pixels or int(tag) in _PIXEL_TAGS
        return has_pixels

    with tolerant_pydicom():
        ds = read_partial(stream, at_pixels, force=True, specific_tags=_HEADER_TAGS)
        return _parse_header(file, ds, has_pixels)


def _parse_header(file: StoredFile, ds: Dataset, has_pixels: bool) -> Header:
    meta = getattr(ds, "file_meta", Dataset())
    sop_class = read_text(ds, "SOPClassUID") or read_text(meta, "MediaStorageSOPClassUID")
    patient, study_uid = read_text(ds, "PatientID"), read_text(ds, "StudyInstanceUID")
    frame = read_text(ds, "FrameOfReferenceUID")
    study = study_uid or frame or file.folder  # anonymisers remove even required fields
    size = (int(read_number(ds, "Rows") or 0), int(read_number(ds, "Columns") or 0))
    fault = _fault(ds, sop_class, size, has_pixels)
    return Header(
        file=file,
        sop_class=sop_class,
        sop_instance=read_text(ds, "SOPInstanceUID") or read_text(meta, "MediaStorageSOPInstanceUID") or str(file),
        series=read_text(ds, "SeriesInstanceUID") or ("" if fault else _series_without_uid(ds, study)),
        subject_key=patient or study,
        session_key=study,
        fault=fault,
        patient=patient,
        study=study_uid,
        modality=read_text(ds, "Modality"),
        image_type=tuple(str(v) for v in _values_or_none(ds, "ImageType")),
        description=f"{read_text(ds, 'SeriesDescription')} {read_text(ds, 'ProtocolName')}",
        body_part=read_text(ds, "BodyPartExamined"),
        kind=classify_header(ds),
        acquisition=read_text(ds, "AcquisitionNumber"),
        temporal=read_text(ds, "TemporalPositionIdentifier"),
        instance=int(read_number(ds, "InstanceNumber") or 0),
        echo_time=read_number(ds, "EchoTime"),
        repetition_time=read_number(ds, "RepetitionTime"),
        inversion_time=read_number(ds, "InversionTime"),
        n_frames=int(read_number(ds, "NumberOfFrames") or 1),
        size=size,
        orientation=read_numbers(ds, "ImageOrientationPatient"),
        position=read_numbers(ds, "ImagePositionPatient"),
        slice_step=_slice_step(ds),
        counts=_image_counts(ds),
        is_mosaic=_is_mosaic(ds, sop_class),
        age=parse_dicom_age(read_text(ds, "PatientAge")),
        sex=parse_sex(read_text(ds, "PatientSex")),
    )


def _fault(ds: Dataset, sop_class: str, size: tuple[int, int], has_pixels: bool) -> str:
    """Return what is wrong with a file by the end of its header; empty if nothing is."""
    name = UID(sop_class).name
    is_image = bool(re.search(r"\b(MR|CT) Image", name)) or (name == sop_class and size != (0, 0))
    if is_image and not has_pixels:
        return "cut before its pixels"
    if is_image and 0 in size:
        return "without a readable number of rows and columns"
    is_complete = is_image or sop_class == MediaStorageDirectoryStorage or read_text(ds, "Modality")
    return "" if is_complete else "cut or damaged"


def _series_without_uid(ds: Dataset, study: str) -> str:
    return f"{study}/{read_text(ds, 'SeriesNumber')}/{read_text(ds, 'SeriesDescription')}"


def _values(ds: Dataset, keyword: str) -> Sequence[Any]:
    value = ds.get(keyword, None)
    if value is None or value == "":
        return ()
    return value if not isinstance(value, str) and hasattr(value, "__len__") else [value]


def _values_or_none(ds: Dataset, keyword: str) -> Sequence[Any]:
    try:
        return _values(ds, keyword)
    except _VALUE_ERRORS:
        return ()


def _slice_step(ds: Dataset) -> float | None:
    """Return the distance between slice centres; None where the header gives the gap between slices instead."""
    step, thickness = read_number(ds, "SpacingBetweenSlices"), read_number(ds, "SliceThickness")
    if step is None or thickness is None or step < thickness - 0.01:
        return None
    return step if step > 0 else None


def _image_counts(ds: Dataset) -> ImageCounts:
    return ImageCounts(
        slices=_count(ds, "NumberOfSlices")
        or _private_count(ds, _GE_RELATION, 0x0021, 0x4F)
        or _private_count(ds, _PHILIPS, 0x2001, 0x18),
        acquisition=_count(ds, "ImagesInAcquisition"),
        series=_count(ds, "NumberOfSeriesRelatedInstances")
        or _count(ds, "InConcatenationTotalNumber")
        or _private_count(ds, _GE_SERIES, 0x0025, 0x07),
        time_points=_count(ds, "NumberOfTemporalPositions"),
    )


def _is_mosaic(ds: Dataset, sop_class: str) -> bool:
    n_tiles = _private_count(ds, _SIEMENS, 0x0019, 0x0A) or 1
    return not is_multiframe_class(sop_class) and ("MOSAIC" in _values_or_none(ds, "ImageType") or n_tiles > 1)


def _count(ds: Dataset, keyword: str) -> int | None:
    number = read_number(ds, keyword)
    return int(number) if number is not None and number >= 1 else None


def _private_count(ds: Dataset, creator: str, group: int, element: int) -> int | None:
    try:
        number = float(ds.private_block(group, creator)[element].value)
    except _VALUE_ERRORS:
        return None
    return int(number) if number >= 1 else None
