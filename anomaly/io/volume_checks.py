"""Make a volume of voxels and an affine, and refuse those that cannot be a scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, Modality, ScanWarning, Volume
from anomaly.io.stored_file import too_large_error

MIN_SPACING_MM = 0.1
MAX_SPACING_MM = 10.0
MAX_POSITION_MM = 1e5
MAX_VOXELS = 1 << 30


def make_volume(
    voxels: npt.NDArray[Any],
    affine: AffineArray,
    scan_id: str,
    modality: Modality,
    warnings: Sequence[ScanWarning] = (),
) -> Volume:
    """Return a volume after checking its geometry and voxels.

    Raises
    ------
    ScanRefusedError
        If the voxels are constant or not finite, or the geometry is implausible for a head scan.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite, and are refused
        values = np.asarray(voxels, dtype=np.float32)
    geometry = Geometry(values.shape, affine)
    check_geometry(geometry)
    check_voxels(values)
    return Volume(values, geometry, scan_id, modality, warnings=tuple(warnings))


def check_shape(shape: Sequence[int], bytes_per_voxel: int = 1) -> tuple[int, int, int]:
    """Return the first three of the sizes of an image's axes.

    Raises
    ------
    ScanRefusedError
        If the image is not one 3D volume, or too large to be a scan.
    """
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape[:3]) < 2:
        raise ScanRefusedError("not_3d", "an image of shape " + " × ".join(map(str, shape)), "one 3D volume",
                               "give one volume; split a 4D series first")  # fmt: skip
    i, j, k = (int(n) for n in shape[:3])
    if i * j * k > MAX_VOXELS:
        raise too_large_error(i * j * k * bytes_per_voxel)
    return i, j, k


def check_geometry(geometry: Geometry) -> None:
    """Raise ScanRefusedError if the affine is degenerate or the voxel size is implausible for a head scan."""
    matrix = geometry.affine
    remedy = "convert the scan again from its DICOM files, or correct the affine"
    if not (np.abs(matrix) < MAX_POSITION_MM).all():  # NaN compares false, too
        raise ScanRefusedError("absurd_geometry", "an affine that is not finite, or positions beyond 100 m",
                               "finite numbers", remedy)  # fmt: skip
    spacing = np.array(geometry.spacing)
    if (spacing < MIN_SPACING_MM).any() or (spacing > MAX_SPACING_MM).any():
        found = "voxels of " + " × ".join(f"{s:.3g}" for s in spacing) + " mm"
        raise ScanRefusedError("absurd_geometry", found, f"{MIN_SPACING_MM} to {MAX_SPACING_MM} mm", remedy)
    volume = abs(float(np.linalg.det(matrix[:3, :3])))
    if volume < 0.25 * float(np.prod(spacing)):
        raise ScanRefusedError("absurd_geometry", "an affine whose axes are nearly parallel",
                               "three independent axes", remedy)  # fmt: skip


def check_voxels(voxels: FloatArray) -> None:
    """Raise ScanRefusedError if voxels are constant or not finite."""
    low, high = float(voxels.min()), float(voxels.max())  # NaN propagates, so this also finds NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        n_bad = int(voxels.size - np.isfinite(voxels).sum())
        raise ScanRefusedError("non_finite", f"{n_bad} voxels that are not numbers", "finite intensities",
                               "replace them, or export the scan again")  # fmt: skip
    if low == high:
        raise ScanRefusedError("constant", f"{low:g} in every voxel", "an image",
                               "check that the export worked")  # fmt: skip


def missing_geometry_error(found: str, expected: str) -> ScanRefusedError:
    """Return the error of an image whose header does not tell where its voxels lie."""
    return ScanRefusedError("missing_geometry", found, expected, "convert the scan again from its DICOM files")
