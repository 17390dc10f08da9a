"""Read a DICOM series as a volume in RAS+ millimetres.

DICOM positions are LPS millimetres: x grows to the left, y to the back. Only this module uses LPS.

Gantry tilt is represented exactly: the slices of a tilted CT are shifted against each other, so the third axis of
the affine is not perpendicular to the slices. Nothing is resampled; the grid is the acquired one.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.pixels.processing import apply_rescale

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, Modality, Volume
from anomaly.io.dicom_series import DicomSeries
from anomaly.io.stored_file import StoredFile, read_all, unreadable_error
from anomaly.io.volume_checks import check_geometry, check_voxels

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Scanners round the positions in the header, some to 0.1 mm.
SPACING_TOLERANCE_SHARE = 0.03
SPACING_TOLERANCE_MM = 0.02


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
    """

    pixels: FloatArray
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: tuple[float, float]

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
    volume = stack_slices(list(_decode_files(series.files)), scan_id or series.scan_id, modality)
    return Volume(volume.voxels, volume.geometry, volume.scan_id, modality,
                  {"body_part": series.headers[0].body_part.upper()})  # fmt: skip


def stack_slices(slices: Sequence[Slice], scan_id: str, modality: Modality) -> Volume:
    """Stack slices to a volume.

    Raises
    ------
    ScanRefusedError
        If the slices are not parallel, evenly spaced and of one size, or several share a position.
    """
    _check_parallel(slices)
    ordered = sorted(slices, key=lambda s: float(s.position @ slices[0].normal))
    ordered = _without_duplicates(ordered)
    _check_spacing(ordered)
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
            "not_3d", f"{len(ordered)} images at {len(distinct)} positions: several volumes in one series",
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


def _decode_files(files: Sequence[StoredFile]) -> Iterator[Slice]:
    for _, content in read_all(files):
        try:
            yield from _decode(content)
        except ScanRefusedError:
            raise
        except Exception as error:  # decoders raise all kinds of errors on damaged data
            raise unreadable_error(
                f"a DICOM file whose image cannot be decoded ({type(error).__name__})"
            ) from error


def _decode(content: bytes) -> list[Slice]:
    with disable_value_validation():
        ds = dcmread(io.BytesIO(content), force=True)
        pixels = _read_pixels(ds)
        return [_make_slice(ds, pixels, frame) for frame in range(len(pixels))]


def _read_pixels(ds: Dataset) -> npt.NDArray[Any]:
    """Return stored values ``(frames, rows, columns)``.

    MONOCHROME1 is inverted, so that larger values are brighter. CT is not: its values are Hounsfield units however
    they are displayed.
    """
    if int(ds.get("SamplesPerPixel", 1)) != 1:
        raise ScanRefusedError("not_scalar", "colour images", "one number per voxel",
                               "give the scan itself, not a rendered image of it")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom warns of padding and excess bytes of real files
        pixels = ds.pixel_array
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    if ds.get("PhotometricInterpretation") == "MONOCHROME1" and ds.get("Modality") != "CT":
        highest = (1 << int(ds.BitsStored)) - 1
        pixels = (-1 if int(ds.PixelRepresentation) else highest) - pixels.astype(np.int64)
    return pixels


def _make_slice(ds: Dataset, pixels: npt.NDArray[Any], frame: int) -> Slice:
    plane_position = _functional_group(ds, frame, "PlanePositionSequence")
    plane_orientation = _functional_group(ds, frame, "PlaneOrientationSequence")
    measures = _functional_group(ds, frame, "PixelMeasuresSequence")
    rescale = _functional_group(ds, frame, "PixelValueTransformationSequence")
    try:
        position = np.array(plane_position.ImagePositionPatient, dtype=np.float64)
        orientation = np.array(plane_orientation.ImageOrientationPatient, dtype=np.float64)
        rows, columns = (float(v) for v in measures.PixelSpacing)
    except (AttributeError, ValueError, TypeError) as error:
        raise ScanRefusedError("missing_geometry", "an image without position, orientation or pixel spacing",
                               "images with position, orientation and pixel spacing",
                               "export the original series from the scanner or PACS") from error  # fmt: skip
    values = np.asarray(apply_rescale(pixels[frame], rescale), dtype=np.float32)
    return Slice(values, position, orientation, (rows, columns))


def _functional_group(ds: Dataset, frame: int, sequence: str) -> Dataset:
    """Return the functional group of a frame, or the data set itself if the image has a single frame."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(groups) or []
        if len(items) > index and items[index].get(sequence):
            item: Dataset = items[index][sequence][0]
            return item
    return ds
