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
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.preprocessing.components import largest_component
from anomaly.preprocessing.grid import resample_mask
from anomaly.preprocessing.template import target_grid, template_on

MIN_FOCUS_VOXELS = 27  # a smaller focus is not resolved by its grid
N_FOCI = (3, 12)  # range of the number of foci
PERIVENTRICULAR_MM = 15.0  # distance from the ventricles at which a focus is less likely by a factor of e
VENTRICLE_DEPTH_MM = 30.0  # below the surface of the brain, where CSF is that of the ventricles
CRESCENT_MM, CRESCENT_RADIANS = 8.0, 0.8  # depth and half the angle at which a crescent is equally likely to end


def ball_radius(volume: float) -> float:
    """Return the radius of a ball of a volume."""
    return float((3 * volume / (4 * np.pi)) ** (1 / 3))


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
    deep = ndimage.binary_erosion(mask, iterations=max(1, round(ball_radius(n_voxels) / 2)))
    centres = np.argwhere(deep if deep.any() else mask)
    return _blob_around(centres[rng.integers(len(centres))], mask, n_voxels, rng)


def random_foci(
    mask: MaskArray,
    focus_ml: tuple[float, float],
    grid: Geometry,
    rng: np.random.Generator,
    likely: npt.NDArray[Any] | None = None,
) -> MaskArray:
    """Draw several small lesions inside a mask ``(I, J, K)``.

    Parameters
    ----------
    focus_ml
        Range of the volume of each, uniform on a logarithmic scale; at least :data:`MIN_FOCUS_VOXELS`.
    likely
        How likely a focus is at each voxel; by default, the more likely, the deeper.
    """
    chance = (ndimage.distance_transform_edt(mask) ** 2 if likely is None else likely * mask).ravel()
    if not chance.any():
        raise InputError("foci do not fit in the foreground: it is empty where foci are likely")
    foci = np.zeros(mask.shape, dtype=bool)
    for place in rng.choice(chance.size, size=rng.integers(*N_FOCI, endpoint=True), p=chance / chance.sum()):
        volume = float(np.exp(rng.uniform(*np.log(focus_ml))))
        n_voxels = min(max(MIN_FOCUS_VOXELS, round(volume / grid.voxel_ml)), int(mask.sum()))
        centre = np.array(np.unravel_index(place, mask.shape))
        reach = 3 + round(3 * ball_radius(n_voxels))
        box = tuple(slice(max(0, c - reach), c + reach + 1) for c in centre)
        corner = np.array([s.start for s in box])
        foci[box] |= _blob_around(centre - corner, mask[box], n_voxels, rng)
    return foci


def periventricular_white_matter(grid: Geometry) -> FloatArray | None:
    """Return how likely foci are at each voxel of the template grid: white matter near the ventricles.

    It is None for another grid than that of the template.
    """
    expected = target_grid(grid.spacing[0])
    if grid.shape != expected.shape or not np.allclose(grid.affine, expected.affine):
        return None
    template = template_on(grid.spacing[0])
    ventricles = (template.csf > 0.5) & (template.depth_mm() > VENTRICLE_DEPTH_MM)
    distance = ndimage.distance_transform_edt(~ventricles, sampling=grid.spacing)
    white = np.where(template.white > 0.5, template.white, 0)
    return np.asarray(white * np.exp(-distance / PERIVENTRICULAR_MM), dtype=np.float32)


def random_crescent(mask: MaskArray, volume_ml: float, grid: Geometry, rng: np.random.Generator) -> MaskArray:
    """Draw a crescent of about the given volume along the inner edge of one side of a mask ``(I, J, K)``.

    Its centre is at the side of the brain or above; the first axis is right and left, the third up.
    """
    n_voxels = max(1, min(round(volume_ml / grid.voxel_ml), int(mask.sum()) // 4))
    depth = ndimage.distance_transform_edt(mask, sampling=grid.spacing)
    side, forward, up = rng.choice([-1.0, 1.0]), rng.uniform(-0.7, 0.7), rng.uniform(0, 0.7)
    direction = np.array([side, forward, up]) / np.linalg.norm([side, forward, up])
    spacing = np.array(grid.spacing)[:, None, None, None]
    offset = spacing * (np.indices(mask.shape) - np.argwhere(mask).mean(axis=0)[:, None, None, None])
    along = np.tensordot(direction, offset, axes=1) / np.maximum(np.linalg.norm(offset, axis=0), 1e-6)
    cost = depth / CRESCENT_MM + (np.arccos(np.clip(along, -1, 1)) / CRESCENT_RADIANS) ** 2
    cost[~mask] = np.inf
    return largest_component(_lowest(cost, n_voxels))


def _blob_around(centre: npt.NDArray[Any], mask: MaskArray, n_voxels: int, rng: np.random.Generator) -> MaskArray:
    n_voxels = min(n_voxels, int(mask.sum()))
    radius = ball_radius(n_voxels)
    distance = np.linalg.norm(np.moveaxis(np.indices(mask.shape), 0, -1) - centre, axis=-1)
    cost = distance / radius + 0.35 * smooth_noise(mask.shape, radius / 2, rng)
    cost[~mask] = np.inf
    return largest_component(_lowest(cost, n_voxels))


def _lowest(cost: npt.NDArray[Any], n_voxels: int) -> MaskArray:
    return np.asarray(cost <= np.partition(cost.ravel(), n_voxels - 1)[n_voxels - 1])


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
