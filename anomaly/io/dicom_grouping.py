"""Group DICOM files into series that are one scan each, or are refused with a reason.

Only headers are read here; :mod:`anomaly.io.dicom_volume` reads the pixels. A series is split if one
SeriesInstanceUID has several images at the same position (echoes, magnitude and phase, repeats) or planes that
cannot form one volume. A series of which a file is damaged or an image is missing is refused, never shortened.
"""

from __future__ import annotations

import hmac
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.uid import UID

from anomaly.core.errors import ScanRefusedError
from anomaly.core.site_key import site_key
from anomaly.core.volume import Modality
from anomaly.io.dicom_completeness import (
    count_positions,
    damage_refusal,
    have_repeated_positions,
    lies_in_stack,
    missing_images,
    missing_slices_refusal,
    signs_of_missing_images,
)
from anomaly.io.dicom_header import Header, is_multiframe_class
from anomaly.io.series_words import LOCALIZER, ImageKind
from anomaly.io.stored_file import StoredFile

_MAX_SCANS_PER_POSITION = 3  # more images at one position are a time series, not several scans
_SAME_ORIENTATION = 0.01  # difference of direction cosines, about half a degree
_SAME_ECHO_TIME_MS = 0.01
_MAX_STRAY_IMAGES = 2
PSEUDONYM_DIGITS = 12  # hex: among 100 000 patients, two share a pseudonym with probability 2e-5


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
    signs_of_loss
        Signs that images are missing, which do not prove it; empty if there are none.
    problems_beside
        What is wrong with other files in its folder or zip.
    """

    headers: tuple[Header, ...]
    kind: ImageKind
    subject: str
    session: str
    acquisition: str
    refusal: ScanRefusedError | None = field(default=None, compare=False)
    signs_of_loss: str = ""
    problems_beside: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """Why the files may not be the complete scan; empty if nothing says so."""
        return "; ".join(filter(None, (self.signs_of_loss, *self.problems_beside)))

    @property
    def modality(self) -> Modality:
        """The modality that the header gives."""
        return self.kind.modality

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The files, in the order of their instance numbers."""
        return tuple(h.file for h in self.headers)

    @property
    def uid(self) -> str:
        """SeriesInstanceUID, or what stands for it; empty if no file names it."""
        return self.headers[0].series

    @property
    def scan_id(self) -> str:
        """A pseudonymous name, made of keyed hashes of patient, study and series."""
        return f"{self.subject}_{self.session}_acq-{self.acquisition}_{self.modality.value}"


def group_series(headers: Iterable[Header]) -> list[DicomSeries]:
    """Group the headers of files into series, each one scan or refused, in a fixed order.

    A damaged file whose header does not name its series belongs to the only series of images in its folder. If
    there are several, it is refused on its own, and they get a warning.
    """
    files = _dicom_files(list(headers))
    if files and all(h.is_directory for h in files):
        return [_refused_series(files[:1], _directory_refusal())]
    by_series, unowned = _by_series([h for h in files if not h.is_directory])
    found = [series for name in sorted(by_series) for series in _series_of_uid(by_series[name])]
    return [
        *(_with_damage_beside(series, set(unowned)) for series in _without_lost_slices(found)),
        *(_damaged_series([], damaged, [h for h in files if h.file.folder == folder])
          for folder, damaged in unowned.items()),
    ]  # fmt: skip


def _dicom_files(headers: Sequence[Header]) -> list[Header]:
    """Return DICOM files, and files in the same folder that are named like them but are something else."""
    named = {(h.file.folder, _name_pattern(h.file.name)) for h in headers if h.is_dicom and not h.is_directory}
    return [h for h in headers if h.is_dicom or (h.file.folder, _name_pattern(h.file.name)) in named]


def _name_pattern(name: str) -> str:
    """Return a file name with its numbers and UIDs replaced."""
    return "#" if re.fullmatch(r"[0-9A-Fa-f]{4,}", name) else re.sub(r"\d+(\.\d+)*", "#", name)


def _by_series(files: Sequence[Header]) -> tuple[dict[str, list[Header]], dict[str, list[Header]]]:
    """Return the files of each series, with damaged ones, and by folder the damaged files of no known series."""
    by_series: dict[str, list[Header]] = defaultdict(list)
    series_in: dict[str, set[str]] = defaultdict(set)
    for header in (h for h in files if not h.fault):
        by_series[header.series].append(header)
        if header.size[0] > 0:
            series_in[header.file.folder].add(header.series)
    unowned: dict[str, list[Header]] = defaultdict(list)
    for header in (h for h in files if h.fault):
        beside = series_in[header.file.folder]
        owner = header.series if header.series in by_series else "".join(beside) if len(beside) == 1 else None
        (unowned[header.file.folder] if owner is None else by_series[owner]).append(header)
    return by_series, unowned


def _series_of_uid(files: Sequence[Header]) -> list[DicomSeries]:
    """Return the scans among the files of one SeriesInstanceUID, or one series that is refused."""
    ordered = sorted((h for h in files if not h.fault), key=lambda h: (h.instance, h.file))
    intact = list({h.sop_instance: h for h in reversed(ordered)}.values())[::-1]  # an image may be exported twice
    damaged = [h for h in files if h.fault and h.sop_instance not in {i.sop_instance for i in intact}]
    if damaged:
        return [_damaged_series(intact, damaged, files)]
    refusal = _refusal_of_identity(ordered) or _refusal_of_planes(intact)
    return [_refused_series(intact, refusal)] if refusal else _split_series(intact)


def _damaged_series(intact: list[Header], damaged: list[Header], beside: Iterable[Header]) -> DicomSeries:
    """Return a refused series. ``beside`` are the files among which the places of the damaged ones are counted."""
    names = sorted(h.file for h in beside)
    numbers = [names.index(h.file) + 1 for h in damaged]
    return _refused_series([*intact, *damaged], damage_refusal(damaged, len(names), numbers))


def _refusal_of_identity(headers: Sequence[Header]) -> ScanRefusedError | None:
    """Return the refusal of files of several patients or studies, or of several images with one SOPInstanceUID."""
    n_patients, n_studies = (len({v for v in values if v}) for values in
                             ([h.patient for h in headers], [h.study for h in headers]))  # fmt: skip
    if n_patients > 1 or n_studies > 1:
        return ScanRefusedError(
            "mixed_patients", f"one SeriesInstanceUID for {n_patients} patients and {n_studies} studies",
            "a series of one patient and one study", "give each study on its own, with series UIDs of its own",
        )  # fmt: skip
    images: dict[str, set[Hashable]] = defaultdict(set)
    for header in headers:
        images[header.sop_instance].add(_image_key(header))
    n_different = max(len(keys) for keys in images.values())
    if n_different == 1:
        return None
    return ScanRefusedError("equal_uids", f"{n_different} different images with the same SOPInstanceUID",
                            "a SOPInstanceUID of its own for each image",
                            "export the original series; its UIDs were replaced")  # fmt: skip


def _image_key(header: Header) -> Hashable:
    """Return what is different for different images, and equal for two copies of one."""
    return (header.instance, header.position, header.orientation, header.size, header.echo_time,
            header.acquisition, header.temporal, header.n_frames)  # fmt: skip


def _refusal_of_planes(headers: Sequence[Header]) -> ScanRefusedError | None:
    """Return the refusal of a series of which some images have a readable plane and others do not."""
    images = [h for h in headers if h.size[0] > 0 and h.n_frames == 1 and not is_multiframe_class(h.sop_class)]
    n_without = sum(not h.has_plane for h in images)
    if n_without in {0, len(images)}:
        return None
    return ScanRefusedError(
        "missing_geometry", f"{n_without} of {len(images)} images without a readable position or orientation",
        "images with position, orientation and pixel spacing",
        "export the original series from the scanner or PACS",
    )  # fmt: skip


def _without_lost_slices(found: Sequence[DicomSeries]) -> list[DicomSeries]:
    """Refuse series of which a slice lies in the same folder under another SeriesInstanceUID."""
    singles = [s.headers[0] for s in found if len(s.headers) == 1 and s.headers[0].n_frames == 1]
    return [
        _refused_series(list(s.headers), missing_slices_refusal(
            "a slice of the series under another SeriesInstanceUID in the same folder"
        ))
        if s.refusal is None and any(_continues(single, s.headers) for single in singles) else s
        for s in found
    ]  # fmt: skip


def _continues(single: Header, stack: Sequence[Header]) -> bool:
    first = stack[0]
    return (
        (single.session_key, single.file.folder, single.size) == (first.session_key, first.file.folder, first.size)
        and _are_close(single.orientation, first.orientation, _SAME_ORIENTATION)
        and lies_in_stack(single, stack)
    )


def _split_series(headers: list[Header]) -> list[DicomSeries]:
    localizer = [h for h in headers if _is_localizer(h)]
    others = [h for h in headers if not _is_localizer(h)]
    images = [h for h in others if h.size[0] > 0]
    objects = [h for h in others if h.size[0] == 0]
    found = [_refused_series(localizer, _localizer_refusal(len(localizer)))] if localizer else []
    if objects:
        found.append(_refused_series(objects, _object_refusal(objects[0])))
    return [*(_checked(s, headers) for s in _split_images(images)), *found]


def _checked(series: DicomSeries, of_uid: Sequence[Header]) -> DicomSeries:
    """Refuse or mark a series without all the images that the headers of its SeriesInstanceUID count."""
    if series.refusal is not None:
        return series
    refusal = missing_images(series.headers, of_uid)
    return replace(series, refusal=refusal, signs_of_loss=signs_of_missing_images(series.headers, of_uid))


def _is_localizer(header: Header) -> bool:
    return "LOCALIZER" in header.image_type or (header.n_frames < 32 and header.kind.other == LOCALIZER)


def _split_images(images: list[Header]) -> list[DicomSeries]:
    planes = [part for sized in _group_by(images, lambda h: h.size)
              for part in _group_close(sized, lambda h: h.orientation, _SAME_ORIENTATION)]  # fmt: skip
    strays = [h for p in planes for h in p if len(p) <= _MAX_STRAY_IMAGES]
    if any(lies_in_stack(h, p) for h in strays for p in planes if h not in p):
        return [_refused_series(images, _stray_refusal(len(strays), len(images)))]
    if len(planes) > 1 and max(len(p) for p in planes) < 16 and all(h.n_frames == 1 for h in images):
        return [_refused_series(images, _localizer_refusal(len(images), len(planes)))]
    return [series for plane in planes for series in _split_repeats(plane)]


def _split_repeats(plane: list[Header]) -> list[DicomSeries]:
    """Split images at the same positions into scans: by echo time, image type, then acquisition."""
    splits: list[Callable[[list[Header]], list[list[Header]]]] = [
        lambda part: _group_close(part, _echo_time, _SAME_ECHO_TIME_MS),
        lambda part: _group_by(part, lambda h: h.image_type),
        lambda part: _group_by(part, lambda h: (h.acquisition, h.temporal)),
    ]
    parts = [plane]
    for split_part in splits:
        if not any(have_repeated_positions(p) for p in parts):
            break
        split = [s for p in parts for s in (split_part(p) if have_repeated_positions(p) else [p])]
        if len(split) <= _MAX_SCANS_PER_POSITION * len(parts):
            parts = split
    n_slices = [count_positions(p) for p in parts]
    return [
        _make_series(p) if n == max(n_slices) else _refused_series(p, missing_slices_refusal(
            f"{n} slices where another volume of the series has {max(n_slices)}"
        ))
        for p, n in zip(parts, n_slices, strict=True)
    ]  # fmt: skip


def _echo_time(header: Header) -> tuple[float, ...]:
    return () if header.echo_time is None else (header.echo_time,)


def _group_by(headers: list[Header], key: Callable[[Header], Hashable]) -> list[list[Header]]:
    parts: dict[Hashable, list[Header]] = defaultdict(list)
    for header in headers:
        parts[key(header)].append(header)
    return list(parts.values())


def _group_close(
    headers: list[Header], values: Callable[[Header], tuple[float, ...]], tolerance: float
) -> list[list[Header]]:
    """Group headers whose values differ from those of the first of the group by no more than a tolerance."""
    parts: list[list[Header]] = []
    for header in headers:
        part = next((p for p in parts if _are_close(values(header), values(p[0]), tolerance)), None)
        if part is None:
            parts.append([header])
        else:
            part.append(header)
    return parts


def _are_close(one: tuple[float, ...], other: tuple[float, ...], tolerance: float) -> bool:
    return len(one) == len(other) and bool((np.abs(np.subtract(one, other)) <= tolerance).all())


def _make_series(headers: list[Header]) -> DicomSeries:
    first = _most_complete(headers)
    return DicomSeries(
        tuple(headers), first.kind, f"sub-{_pseudonym('patient', first.subject_key)}",
        f"ses-{_pseudonym('study', first.session_key)}", _pseudonym("series", first.series or first.file.folder),
        _refusal_of_kind(first),
    )  # fmt: skip


def _most_complete(headers: list[Header]) -> Header:
    """Return the first header of those with the most values that could be read."""
    return max(headers, key=lambda h: sum(bool(v) for v in (
        h.patient, h.study, h.modality, h.description, h.echo_time, h.repetition_time, h.inversion_time,
    )))  # fmt: skip


def _with_damage_beside(series: DicomSeries, folders: set[str]) -> DicomSeries:
    """Return a series, with a warning if one of its folders has a damaged file of no known series."""
    if folders.isdisjoint(h.file.folder for h in series.headers):
        return series
    return with_problems_beside(series, ["a damaged file in its folder"])


def with_problems_beside(series: DicomSeries, problems: Iterable[str]) -> DicomSeries:
    """Return a series with further problems of other files in its folder or zip, each once."""
    return replace(series, problems_beside=tuple(dict.fromkeys([*series.problems_beside, *problems])))


def _refused_series(headers: list[Header], refusal: ScanRefusedError) -> DicomSeries:
    return replace(_make_series(headers), refusal=refusal)


def _pseudonym(kind: str, value: str) -> str:
    """Return a name that only this site can make from the value: HMAC-SHA-256 (RFC 2104) with the site key."""
    return hmac.new(site_key(), f"anomaly/{kind}/{value}".encode(), "sha256").hexdigest()[:PSEUDONYM_DIGITS]


def _refusal_of_kind(header: Header) -> ScanRefusedError | None:
    """Return the refusal of a series that is not of three-dimensional MR or CT images; None for one that is."""
    name = UID(header.sop_class).name
    if header.is_mosaic:
        return _mosaic_refusal()
    if header.modality not in {"CT", "MR"} or re.search(
        "Secondary Capture|Spectroscopy|Raw Data|Segmentation|Parametric Map", name
    ):
        return _object_refusal(header)
    return None


def _object_refusal(header: Header) -> ScanRefusedError:
    name = UID(header.sop_class).name
    kind = name if not name[:1].isdigit() else f"a {header.modality or 'private'} object"
    return ScanRefusedError("non_image", kind, "CT or MR images", "give the series of the scan itself")


def _mosaic_refusal() -> ScanRefusedError:
    return ScanRefusedError("mosaic", "a Siemens mosaic: the slices of a volume side by side in one image",
                            "one image for each slice",
                            "convert the series with dcm2niix, or export it as enhanced DICOM")  # fmt: skip


def _directory_refusal() -> ScanRefusedError:
    return ScanRefusedError("dicomdir", "a DICOMDIR: an index without images", "the images that it lists",
                            "give the folder with the image files")  # fmt: skip


def _stray_refusal(n_strays: int, n_images: int) -> ScanRefusedError:
    return ScanRefusedError(
        "mixed_planes", f"{n_strays} of {n_images} images of another size or orientation than their stack",
        "parallel slices of one size", "export the series again",
    )  # fmt: skip


def _localizer_refusal(n_images: int, n_planes: int = 1) -> ScanRefusedError:
    planes = f" in {n_planes} planes" if n_planes > 1 else ""
    return ScanRefusedError("localizer", f"a localizer of {n_images} images{planes}", "a diagnostic series",
                            "give the series of the scan itself")  # fmt: skip
