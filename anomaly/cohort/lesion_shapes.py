"""Shapes of synthetic lesions: drawn at random, or real lesion masks of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

from anomaly.core.errors import InputError
from anomaly.core.volume import Geometry, MaskArray
from anomaly.preprocessing.components import largest_component
from anomaly.preprocessing.grid import resample_mask


def random_blob(mask: MaskArray, volume_ml: float, voxel_ml: float, rng: np.random.Generator) -> MaskArray:
    """Draw a connected, irregular lesion of about the given volume inside a mask ``(I, J, K)``.

    The lesion is a ball around a random voxel with a surface displaced by smooth noise: the largest component of
    the ``volume_ml / voxel_ml`` voxels with the lowest ``distance / radius + noise``.
    """
    n_voxels = max(1, round(volume_ml / voxel_ml))
    if n_voxels > mask.sum():
        raise InputError(
            f"a lesion of {volume_ml:g} ml does not fit in {mask.sum() * voxel_ml:.1f} ml of foreground"
        )
    radius = (3 * n_voxels / (4 * np.pi)) ** (1 / 3)
    deep = ndimage.binary_erosion(mask, iterations=max(1, round(radius / 2)))
    centres = np.argwhere(deep if deep.any() else mask)
    centre = centres[rng.integers(len(centres))]
    distance = np.linalg.norm(np.moveaxis(np.indices(mask.shape), 0, -1) - centre, axis=-1)
    field = distance / radius + 0.35 * smooth_noise(mask.shape, radius / 2, rng)
    field[~mask] = np.inf
    blob = field <= np.partition(field.ravel(), n_voxels - 1)[n_voxels - 1]
    return largest_component(blob)


class LesionShapes(Sequence[MaskArray]):
    """Real lesion masks, read and resampled to a grid on access.

    Parameters
    ----------
    folder
        Folder of binary masks in MNI space (``*.nii`` or ``*.nii.gz``), used in the order of their names.
    grid
        The grid in MNI space to resample them to.
    """

    def __init__(self, folder: Path, grid: Geometry) -> None:
        self.paths = sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")])
        self.grid = grid
        if not self.paths:
            raise InputError(f"no lesion shapes in {folder}; expected binary masks *.nii or *.nii.gz in MNI space")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image = cast("SpatialImage", nib.load(self.paths[index]))
        shape = np.asarray(image.dataobj) > 0
        i, j, k = shape.shape
        return resample_mask(shape, Geometry((i, j, k), image.affine), self.grid, antialias=False)


def lesion_shapes(folder: Path, grid: Geometry) -> LesionShapes:
    """Return the real lesion masks ``(I, J, K)`` of a folder, resampled to a grid on access."""
    return LesionShapes(folder, grid)


def smooth_noise(shape: tuple[int, ...], sd_voxels: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return Gaussian noise smoothed by a Gaussian of the given SD, scaled to mean 0 and SD 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sd_voxels)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-12))
