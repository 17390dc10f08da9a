"""Voxel-level metrics of one scan from its files: evidence map, flagged mask and lesion mask."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage

from anomaly.core.errors import InputError
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.evaluation.localisation import ScanLocalisation, localise

MAX_CORNER_DISTANCE_VOXELS = 0.1  # between two grids that count as equal


def localise_files(evidence_path: Path, lesion_path: Path, flagged_path: Path | None) -> ScanLocalisation:
    """Compare the maps of a scan with its lesion mask; all files are on the grid of the scan.

    Evidence is 0 outside the brain; lesion voxels there count as missed.

    Parameters
    ----------
    flagged_path
        The mask of voxels above the calibrated threshold; None without a calibration.

    Raises
    ------
    InputError
        A file is missing, unreadable or on another grid, or the lesion mask is empty.
    """
    evidence, grid = read_image(evidence_path, "evidence map")
    lesion = _read_mask(lesion_path, grid, "lesion mask")
    flagged = _read_mask(flagged_path, grid, "flagged mask") if flagged_path else None
    if not lesion.any():
        raise InputError(f"the lesion mask {lesion_path} is empty; label the scan healthy or give its mask")
    return localise(evidence, lesion, evidence > 0, flagged, grid.voxel_ml)


def read_image(path: Path, what: str) -> tuple[FloatArray, Geometry]:
    """Read voxels, float32 ``(I, J, K)``, and grid of a NIfTI file; trailing axes of length 1 are dropped."""
    if not path.is_file():
        raise InputError(f"there is no {what} at {path}")
    try:
        image = cast("SpatialImage", nib.load(path))
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise InputError(f"cannot read the {what} {path}: {error}") from error
    if voxels.ndim > 3 and set(voxels.shape[3:]) == {1}:
        voxels = voxels.reshape(voxels.shape[:3])
    if voxels.ndim != 3:
        raise InputError(f"the {what} {path} has shape {voxels.shape}; expected three axes")
    return voxels, Geometry(voxels.shape, image.affine)


def _read_mask(path: Path, grid: Geometry, what: str) -> MaskArray:
    voxels, found = read_image(path, what)
    if found.shape != grid.shape or _corner_distance(found, grid) > MAX_CORNER_DISTANCE_VOXELS * min(grid.spacing):
        raise InputError(
            f"the {what} {path} is not on the grid of the scan: found {found.shape} voxels of {_mm(found)} mm, "
            f"expected {grid.shape} of {_mm(grid)} mm at the same position; resample it to the scan"
        )
    return voxels > 0


def _corner_distance(first: Geometry, second: Geometry) -> float:
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.shape], indexing="ij")).reshape(3, -1).T
    return float(np.linalg.norm(first.to_world(corners) - second.to_world(corners), axis=1).max())


def _mm(grid: Geometry) -> str:
    return " × ".join(f"{s:.3g}" for s in grid.spacing)
