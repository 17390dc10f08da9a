"""Read a DICOM series as a volume in RAS+ millimetres.

DICOM positions are LPS millimetres: x grows to the left, y to the back. Only this module uses LPS.

Gantry tilt is represented exactly: the slices of a tilted CT are shifted against each other, so the third axis of
the affine is not perpendicular to the slices. Nothing is resampled; the grid is the acquired one.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Modality, ScanWarning, Volume
from anomaly.io.dicom_completeness import damage_refusal
from anomaly.io.dicom_grouping import DicomSeries
from anomaly.io.dicom_header import Header, read_numbers, tolerant_pydicom
from anomaly.io.dicom_pixels import (
    PixelFormat,
    StoredValues,
    decode_pixels,
    pixel_format,
    rescale_of,
    rescaled,
    stored_zero,
)
from anomaly.io.dicom_zero_fill import count_blank_ends, zero_filled_slices
from anomaly.io.stored_file import read_all, unreadable_error
from anomaly.io.volume_checks import check_geometry, check_voxels

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Scanners round the positions in the header, some to 0.1 mm.
SPACING_TOLERANCE_SHARE = 0.03
SPACING_TOLERANCE_MM = 0.02

ORTHONORMAL_TOLERANCE = 0.01  # of products of direction cosines
MAX_SHARE_OF_ODD_RESCALES = 0.1


@dataclass(frozen=True, eq=False)
class Slice:
    """One image plane.

    Parameters
    ----------
    pixels
        float32 ``(rows, columns)``.
    position
        ``(3,)`` LPS millimetres of the centre of the first pixel.
    orientation
        ``(6,)`` LPS unit vectors along a row and along a column.
    spacing
        Distance between rows and between columns, millimetres.
    pixel_format
        How the stored values became ``pixels``.
    rescale
        Slope and intercept.
    stored_zero
        The number that a stored zero becomes.
    """

    pixels: FloatArray
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: tuple[float, float]
    pixel_format: PixelFormat
    rescale: tuple[float, float]
    stored_zero: float

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit normal of the plane ``(3,)``."""
        return np.asarray(np.cross(self.orientation[:3], self.orientation[3:]), dtype=np.float64)


def read_series(series: DicomSeries, scan_id: str | None = None, modality: Modality | None = None) -> Volume:
    """Read one series.

    Returns
    -------
    Volume
        ``(columns, rows, slices)`` float32, Hounsfield units for CT, slices in the order of their positions.

    Raises
    ------
    ScanRefusedError
        If the slices do not form an evenly spaced volume, a slice is missing, or a file is damaged.
    """
    if series.refusal is not None:
        raise series.refusal
    modality = modality or series.modality
    slices = _decode_files(series.headers)
    volume = stack_slices(slices, scan_id or series.scan_id, modality)
    found = (series.warning, _rescale_warning(slices), _blank_end_warning(slices))
    warnings = tuple(_warning(text) for text in found if text)
    return Volume(volume.voxels, volume.geometry, volume.scan_id, modality,
                  {"body_part": series.headers[0].body_part.upper()}, warnings)  # fmt: skip


def stack_slices(slices: Sequence[Slice], scan_id: str, modality: Modality) -> Volume:
    """Stack slices to a volume.

    Raises
    ------
    ScanRefusedError
        If the slices are not parallel, evenly spaced and of one size, or several share a position.
    """
    _check_parallel(slices)
    _check_pixel_formats(slices)
    ordered = _without_duplicates(_in_order(slices))
    _check_spacing(ordered)
    _check_zero_filled(ordered)
    voxels = np.stack([s.pixels for s in ordered]).transpose(2, 1, 0)
    geometry = Geometry(voxels.shape, LPS_TO_RAS @ _lps_affine(ordered))
    check_geometry(geometry)
    check_voxels(voxels)
    return Volume(voxels, geometry, scan_id, modality)


def _lps_affine(ordered: Sequence[Slice]) -> AffineArray:
    """Return the affine (column, row, slice) index → LPS millimetres: DICOM PS3.3 C.7.6.2.1.1 for a stack."""
    first, last = ordered[0], ordered[-1]
    between_rows, between_columns = first.spacing
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * between_columns
    affine[:3, 1] = first.orientation[3:] * between_rows
    affine[:3, 2] = (last.position - first.position) / (len(ordered) - 1)
    affine[:3, 3] = first.position
    return affine


def _check_parallel(slices: Sequence[Slice]) -> None:
    if len(slices) < 2:
        raise ScanRefusedError("too_few_slices", f"{len(slices)} slice", "a stack of slices",
                               "give the complete series")  # fmt: skip
    first = slices[0]
    same = all(
        s.pixels.shape == first.pixels.shape
        and np.allclose(s.spacing, first.spacing, atol=1e-3)
        and np.allclose(s.orientation, first.orientation, atol=1e-3)
        for s in slices
    )
    if not same:
        raise ScanRefusedError("mixed_planes", "slices of different size, pixel spacing or orientation",
                               "parallel slices of one size", "export each stack as its own series")  # fmt: skip


def _without_duplicates(ordered: Sequence[Slice]) -> list[Slice]:
    """Drop exact repeats of the previous slice; refuse different slices at one position."""
    distinct: list[Slice] = [ordered[0]]
    n_repeated = 0
    for current in ordered[1:]:
        if np.linalg.norm(current.position - distinct[-1].position) > 1e-3:
            distinct.append(current)
        elif not np.array_equal(current.pixels, distinct[-1].pixels):
            n_repeated += 1
    if n_repeated:
        raise ScanRefusedError(
            "not_3d", f"{len(ordered)} images at {len(distinct)} positions: several volumes in one series"
            if len(distinct) > 1 else f"{len(ordered)} images at one position: a time series of one slice",
            "one 3D volume", "export one volume (one time point, one contrast) as its own series",
        )  # fmt: skip
    return distinct


def _check_spacing(ordered: Sequence[Slice]) -> None:
    if len(ordered) < 2:
        raise ScanRefusedError("too_few_slices", "1 slice", "a stack of slices", "give the complete series")
    steps = np.diff(np.array([s.position for s in ordered]), axis=0)
    gaps = steps @ ordered[0].normal
    typical_gap = float(np.median(gaps))
    tolerance = SPACING_TOLERANCE_MM + SPACING_TOLERANCE_SHARE * typical_gap
    irregular = np.linalg.norm(steps - np.median(steps, axis=0), axis=1) > tolerance
    if not irregular.any():
        return
    counts = Counter(f"{gap:.2f}" for gap in gaps)
    found = "slices " + ", ".join(f"{gap} mm apart ({n}×)" for gap, n in sorted(counts.items())[:6])
    multiples = gaps[irregular] / typical_gap
    if (np.abs(multiples - np.round(multiples)) < 0.05).all() and (np.round(multiples) >= 2).all():
        n_missing = int(np.round(multiples).sum() - irregular.sum())
        raise ScanRefusedError("missing_slices", f"{found}: {n_missing} missing", "a complete series",
                               "export the series again")  # fmt: skip
    raise ScanRefusedError("uneven_spacing", found, "one spacing between slices",
                           "reconstruct the series at one spacing")  # fmt: skip


def _check_pixel_formats(slices: Sequence[Slice]) -> None:
    formats = Counter(s.pixel_format for s in slices)
    if len(formats) > 1:
        n_other = len(slices) - formats.most_common(1)[0][1]
        raise ScanRefusedError(
            "mixed_pixel_formats",
            f"{n_other} of {len(slices)} slices of another sign, bit depth, photometric interpretation or rescale",
            "one pixel format for all slices", "export the original series from the scanner or PACS",
        )  # fmt: skip


def _warning(found: str) -> ScanWarning:
    return ScanWarning("series_warning", found, "a complete series of equal slices",
                       "compare the number of images with that on the scanner or PACS")  # fmt: skip


def _rescale_warning(slices: Sequence[Slice]) -> str:
    """Return a remark on a few slices with another rescale; scanners give each slice its own, or all the same."""
    n_other = len(slices) - Counter(s.rescale for s in slices).most_common(1)[0][1]
    few = max(1, MAX_SHARE_OF_ODD_RESCALES * len(slices))
    return f"{n_other} of {len(slices)} slices with another rescale than the others" if 0 < n_other <= few else ""


def _blank_end_warning(slices: Sequence[Slice]) -> str:
    """Return a remark on blank slices at the ends of the stack; some scanners add such slices, others never do."""
    n_blank = count_blank_ends(_stored_zeros(_in_order(slices)))
    return f"blank slices at the ends of the stack: {n_blank}" if n_blank else ""


def _stored_zeros(slices: Sequence[Slice]) -> list[MaskArray]:
    return [s.pixels == np.float32(s.stored_zero) for s in slices]


def _in_order(slices: Sequence[Slice]) -> list[Slice]:
    return sorted(slices, key=lambda s: float(s.position @ slices[0].normal))


def _check_zero_filled(ordered: Sequence[Slice]) -> None:
    numbers = [str(index + 1) for index in zero_filled_slices(_stored_zeros(ordered))]
    if numbers:
        raise unreadable_error(
            f"{len(numbers)} of {len(ordered)} slices with zeros instead of a part of the image: "
            f"slice {', '.join(numbers[:3])} in the order of positions"
        )


def _decode_files(headers: Sequence[Header]) -> list[Slice]:
    slices: list[Slice] = []
    damaged: list[Header] = []
    for header, content in _read_files(headers):
        try:
            slices.extend(_decode(content))
        except ScanRefusedError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise all kinds of errors on damaged data
            damaged.append(replace(header, fault=f"an image that cannot be decoded ({type(error).__name__})"))
    if damaged:
        names = sorted(h.file for h in headers)
        raise damage_refusal(damaged, len(headers), [names.index(h.file) + 1 for h in damaged])
    return slices


def _read_files(headers: Sequence[Header]) -> Iterator[tuple[Header, bytes]]:
    """Yield the content of each file; no bytes for one that is damaged."""
    rest = list(headers)
    while rest:
        try:
            for _, content in read_all([h.file for h in rest]):
                yield rest.pop(0), content
        except (ScanRefusedError, zlib.error) as error:
            if isinstance(error, ScanRefusedError) and (error.code != "unreadable" or error.is_transient):
                raise
            yield rest.pop(0), b""


def _decode(content: bytes) -> list[Slice]:
    with tolerant_pydicom():
        ds = dcmread(io.BytesIO(content), force=True)
        pixels = decode_pixels(ds)
        return [_make_slice(ds, pixels, frame) for frame in range(len(pixels))]


def _make_slice(ds: Dataset, pixels: StoredValues, frame: int) -> Slice:
    rescale = _functional_group(ds, frame, "PixelValueTransformationSequence")
    position, orientation, spacing = _plane(ds, frame)
    return Slice(rescaled(pixels[frame], rescale), position, orientation, spacing, pixel_format(ds, rescale),
                 rescale_of(rescale), stored_zero(ds, rescale))  # fmt: skip


def _plane(ds: Dataset, frame: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[float, float]]:
    position = read_numbers(_functional_group(ds, frame, "PlanePositionSequence"), "ImagePositionPatient")
    orientation = read_numbers(_functional_group(ds, frame, "PlaneOrientationSequence"), "ImageOrientationPatient")
    spacing = read_numbers(_functional_group(ds, frame, "PixelMeasuresSequence"), "PixelSpacing")
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        image = "a frame of a multi-frame image" if ds.get("NumberOfFrames") else "an image"
        raise ScanRefusedError(
            "missing_geometry", f"{image} without a readable position, orientation or pixel spacing",
            "images with position, orientation and pixel spacing",
            "export the original series from the scanner or PACS",
        )  # fmt: skip
    axes = np.array(orientation).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > ORTHONORMAL_TOLERANCE or min(spacing) <= 0:
        raise ScanRefusedError(
            "absurd_geometry", "an image orientation that is not two perpendicular unit vectors, or no pixel size",
            "perpendicular rows and columns", "export the original series from the scanner or PACS",
        )  # fmt: skip
    return np.array(position), np.array(orientation), (spacing[0], spacing[1])


def _functional_group(ds: Dataset, frame: int, sequence: str) -> Dataset:
    """Return the functional group of a frame, or the data set itself if the image has a single frame."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(groups) or []
        if len(items) > index and items[index].get(sequence):
            item: Dataset = items[index][sequence][0]
            return item
    return ds
