"""Planted lesions: an irregular blob of a given volume in the tissue of one subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from sample_data.recipe.anatomy import Array, BoolArray
from sample_data.recipe.grid import Grid
from sample_data.recipe.subjects import Stream, random_stream

Effect = Literal["signal_factor", "hounsfield_shift", "hounsfield_value"]
Site = Literal["tissue", "extra_axial", "subdural"]

SUBDURAL_MM = 9.0
"""Largest thickness of a subdural crescent."""


@dataclass(frozen=True)
class Lesion:
    """A lesion to plant.

    Parameters
    ----------
    region
        Name of the region.
    centre
        Template coordinates, RAS+ millimetres.
    volume_ml
        Volume, millilitres.
    effect
        What ``amount`` does: multiply the MR signal, add Hounsfield units, or replace the voxels by them.
    amount
        Size of the effect.
    site
        Where it may lie: in brain ``tissue``; ``extra_axial``, anywhere inside the skull, so that a centre outside
        it gives a lens; ``subdural``, along the inside of the skull, as a crescent.
    """

    region: str
    centre: tuple[float, float, float]
    volume_ml: float
    effect: Effect
    amount: float
    site: Site = "tissue"


def lesion_mask(lesion: Lesion, number: int, template: Array, eligible: BoolArray, grid: Grid) -> BoolArray:
    """Draw the shape of a lesion.

    Parameters
    ----------
    lesion
        What to plant.
    number
        Number of the subject, which seeds the shape.
    template
        Template coordinates of the voxels, shape (I, J, K, 3), RAS+ millimetres.
    eligible
        Voxels that may belong to the lesion, shape (I, J, K).
    grid
        The grid of the scan.

    Returns
    -------
    BoolArray
        Shape (I, J, K), one connected component of ``volume_ml`` to within a voxel.
    """
    rng = random_stream(number, Stream.LESION)
    radius = (lesion.volume_ml * 1000.0 * 3.0 / (4.0 * np.pi)) ** (1.0 / 3.0)
    distance = np.sqrt(((template - np.array(lesion.centre)) ** 2).sum(axis=-1))
    noise = ndimage.gaussian_filter(rng.standard_normal(grid.shape), 0.35 * radius / grid.spacing)
    level = np.where(eligible, distance + 0.25 * radius * noise / noise.std(), np.inf)
    count = round(lesion.volume_ml / grid.voxel_ml)
    return _grow_from_seed(level, count)


def soft_edge(mask: BoolArray) -> Array:
    """Return the weight of the effect, shape (I, J, K): 1 deep in the lesion, decreasing over about a voxel."""
    return np.asarray(ndimage.gaussian_filter(mask.astype(np.float64), 0.6))


def _grow_from_seed(level: Array, count: int) -> BoolArray:
    """Return the ``count`` voxels of lowest ``level`` that are connected with the lowest voxel of all."""
    order = np.sort(level[np.isfinite(level)])
    seed = np.unravel_index(int(np.argmin(level)), level.shape)
    low, high = count - 1, order.size - 1
    while low < high:
        middle = (low + high) // 2
        if _component_of(level, float(order[middle]), seed).sum() < count:
            low = middle + 1
        else:
            high = middle
    return _component_of(level, float(order[low]), seed)


def _component_of(level: Array, bound: float, seed: tuple[np.intp, ...]) -> BoolArray:
    """Find the connected component around ``seed`` of the voxels at or below ``bound``."""
    components, _ = ndimage.label(level <= bound)
    return np.asarray(components == components[seed])
