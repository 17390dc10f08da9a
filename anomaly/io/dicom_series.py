"""Group DICOM files into series that are one scan each, or are refused with a reason.

Only headers are read here; :mod:`anomaly.io.dicom` reads the pixels. A series is split if one SeriesInstanceUID
has several images at the same position (echoes, magnitude and phase, repeats) or planes that cannot form one
volume.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, MediaStorageDirectoryStorage

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality
from anomaly.io.contrast import CONTRAST_TAGS, classify_header
from anomaly.io.series_words import LOCALIZER, ImageKind
from anomaly.io.stored_file import StoredFile
from anomaly.io.vocabulary import parse_dicom_age, parse_sex

_HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID",
    "PatientAge", "PatientSex", "Modality", "ImageType", "SeriesDescription", "ProtocolName", "SeriesNumber",
    "BodyPartExamined", "AcquisitionNumber", "EchoTime", "RepetitionTime", "InversionTime", "ScanningSequence",
    "AcquisitionContrast", "TemporalPositionIdentifier", "InstanceNumber", "Rows", "Columns", "NumberOfFrames",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", *CONTRAST_TAGS,
]  # fmt: skip
_READ_ERRORS = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
)
_MAX_SCANS_PER_POSITION = 3  # more images at one position are a time series, not several scans


@dataclass(frozen=True)
class Header:
    """The header fields of one DICOM file that are needed. Patient name and birth date are not read."""

    file: StoredFile
    sop_class: str
    sop_instance: str
    series: str
    subject_key: str
    session_key: str
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
    age: float | None = None
    sex: str = ""


@dataclass(frozen=True)
class DicomSeries:
    """The files of one scan.

    Parameters
    ----------
    headers
        One per file, in the order of their instance numbers.
    subject, session, acquisition
        Pseudonyms of patient, study and series.
    refusal
        Why the files are not a scan; None if they are one.
    """

    headers: tuple[Header, ...]
    kind: ImageKind
    subject: str
    session: str
    acquisition: str
    refusal: ScanRefusedError | None = field(default=None, compare=False)

    @property
    def modality(self) -> Modality:
        """The modality that the header gives."""
        return self.kind.modality

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The files, in the order of their instance numbers."""
        return tuple(h.file for h in self.headers)

    @property
    def scan_id(self) -> str:
        """A pseudonymous name, made of hashes of patient, study and series."""
        return f"{self.subject}_{self.session}_acq-{self.acquisition}_{self.modality.value}"


def is_dicom(start: bytes) -> bool:
    """Return whether the first 132 bytes of a file are those of a DICOM file."""
    return start[128:132] == b"DICM"


def read_header(file: StoredFile, content: bytes | io.BufferedIOBase | Any) -> Header | None:
    """Read the header of a DICOM file.

    Parameters
    ----------
    file
        The file of the content.
    content
        Bytes of the file, or a stream of them; pixels are not read.

    Returns
    -------
    Header or None
        None if the content is not DICOM, or is only an index (DICOMDIR).
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with disable_value_validation():  # real headers often violate the value rules of DICOM
            ds = dcmread(stream, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS), force=True)
            return _parse_header(file, ds)
    except _READ_ERRORS:
        return None


def group_series(headers: Iterable[Header]) -> list[DicomSeries]:
    """Group the headers of files into series, each one scan or refused, in a fixed order."""
    by_series: dict[str, dict[str, Header]] = defaultdict(dict)
    for header in headers:
        by_series[header.series].setdefault(header.sop_instance, header)  # the same image may be exported twice
    found: list[DicomSeries] = []
    for name in sorted(by_series):
        ordered = sorted(by_series[name].values(), key=lambda h: (h.instance, h.file))
        found.extend(_split_series(ordered))
    return found


def _parse_header(file: StoredFile, ds: Dataset) -> Header | None:
    meta = getattr(ds, "file_meta", Dataset())
    sop_class = _text(ds, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")
    if not sop_class or sop_class == MediaStorageDirectoryStorage:
        return None
    instance = _text(ds, "SOPInstanceUID") or _text(meta, "MediaStorageSOPInstanceUID") or str(file)
    frame = _text(ds, "FrameOfReferenceUID")
    study = _text(ds, "StudyInstanceUID") or frame or file.folder  # anonymisers remove even required fields
    number = _text(ds, "SeriesNumber")
    return Header(
        file=file,
        sop_class=sop_class,
        sop_instance=instance,
        series=_text(ds, "SeriesInstanceUID") or f"{study}/{number}/{_text(ds, 'SeriesDescription')}",
        subject_key=_text(ds, "PatientID") or study,
        session_key=study,
        modality=_text(ds, "Modality"),
        image_type=tuple(str(v) for v in _values(ds, "ImageType")),
        description=f"{_text(ds, 'SeriesDescription')} {_text(ds, 'ProtocolName')}",
        body_part=_text(ds, "BodyPartExamined"),
        kind=classify_header(ds),
        acquisition=_text(ds, "AcquisitionNumber"),
        temporal=_text(ds, "TemporalPositionIdentifier"),
        instance=int(_number(ds, "InstanceNumber") or 0),
        echo_time=_number(ds, "EchoTime"),
        repetition_time=_number(ds, "RepetitionTime"),
        inversion_time=_number(ds, "InversionTime"),
        n_frames=int(_number(ds, "NumberOfFrames") or 1),
        size=(int(_number(ds, "Rows") or 0), int(_number(ds, "Columns") or 0)),
        orientation=tuple(float(v) for v in _values(ds, "ImageOrientationPatient")),
        position=tuple(float(v) for v in _values(ds, "ImagePositionPatient")),
        age=parse_dicom_age(_text(ds, "PatientAge")),
        sex=parse_sex(_text(ds, "PatientSex")),
    )


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword, None)
    return "" if value is None else str(value).strip()


def _values(ds: Dataset, keyword: str) -> Sequence[Any]:
    value = ds.get(keyword, None)
    if value is None or value == "":
        return ()
    return value if not isinstance(value, str) and hasattr(value, "__len__") else [value]


def _number(ds: Dataset, keyword: str) -> float | None:
    values = _values(ds, keyword)
    return float(values[0]) if values else None


def _split_series(headers: list[Header]) -> list[DicomSeries]:
    localizer = [h for h in headers if _is_localizer(h)]
    others = [h for h in headers if not _is_localizer(h)]
    images = [h for h in others if h.size[0] > 0]
    objects = [h for h in others if h.size[0] == 0]
    found = [_refused_series(localizer, _localizer_refusal(len(localizer)))] if localizer else []
    if objects:
        found.append(_refused_series(objects, _object_refusal(objects[0])))
    return [*_split_images(images), *found]


def _is_localizer(header: Header) -> bool:
    return "LOCALIZER" in header.image_type or (header.n_frames < 32 and header.kind.other == LOCALIZER)


def _split_images(images: list[Header]) -> list[DicomSeries]:
    planes = _group_by(images, lambda h: (h.size, tuple(np.round(h.orientation, 2) + 0.0)))
    if len(planes) > 1 and max(len(p) for p in planes) < 16 and all(h.n_frames == 1 for h in images):
        return [_refused_series(images, _localizer_refusal(len(images), len(planes)))]
    return [series for plane in planes for series in _split_repeats(plane)]


def _split_repeats(plane: list[Header]) -> list[DicomSeries]:
    """Split images at the same positions into scans: by echo time, image type, then acquisition."""
    keys: list[Callable[[Header], Hashable]] = [
        lambda h: h.echo_time, lambda h: h.image_type, lambda h: (h.acquisition, h.temporal),
    ]  # fmt: skip
    parts = [plane]
    for key in keys:
        if not any(_has_repeated_positions(p) for p in parts):
            break
        split = [s for p in parts for s in (_group_by(p, key) if _has_repeated_positions(p) else [p])]
        if len(split) <= _MAX_SCANS_PER_POSITION * len(parts):
            parts = split
    return [_make_series(p) for p in parts]


def _has_repeated_positions(headers: list[Header]) -> bool:
    positions = [tuple(np.round(h.position, 2) + 0.0) for h in headers if len(h.position) == 3]
    return len(set(positions)) < len(positions)


def _group_by(headers: list[Header], key: Callable[[Header], Hashable]) -> list[list[Header]]:
    parts: dict[Hashable, list[Header]] = defaultdict(list)
    for header in headers:
        parts[key(header)].append(header)
    return list(parts.values())


def _make_series(headers: list[Header]) -> DicomSeries:
    first = headers[0]
    return DicomSeries(
        tuple(headers), first.kind, f"sub-{_pseudonym('patient', first.subject_key)}",
        f"ses-{_pseudonym('study', first.session_key)}", _pseudonym("series", first.series),
        _refusal_of_kind(first),
    )  # fmt: skip


def _refused_series(headers: list[Header], refusal: ScanRefusedError) -> DicomSeries:
    return replace(_make_series(headers), refusal=refusal)


def _pseudonym(kind: str, value: str) -> str:
    return hashlib.sha256(f"anomaly/{kind}/{value}".encode()).hexdigest()[:8]


def _refusal_of_kind(header: Header) -> ScanRefusedError | None:
    """Return the refusal of a series that is not of three-dimensional MR or CT images; None for one that is."""
    name = UID(header.sop_class).name
    if header.modality not in {"CT", "MR"} or re.search("Secondary Capture|Spectroscopy|Raw Data", name):
        return _object_refusal(header)
    return None


def _object_refusal(header: Header) -> ScanRefusedError:
    name = UID(header.sop_class).name
    kind = name if not name[:1].isdigit() else f"a {header.modality or 'private'} object"
    return ScanRefusedError("non_image", kind, "CT or MR images", "give the series of the scan itself")


def _localizer_refusal(n_images: int, n_planes: int = 1) -> ScanRefusedError:
    planes = f" in {n_planes} planes" if n_planes > 1 else ""
    return ScanRefusedError("localizer", f"a localizer of {n_images} images{planes}", "a diagnostic series",
                            "give the series of the scan itself")  # fmt: skip
