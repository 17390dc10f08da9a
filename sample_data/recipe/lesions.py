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


@dataclass(frozen=True)
class Lesion:
    """What to plant, and where.

    Parameters
    ----------
    place
        Name of the region, for the tables.
    centre
        Template coordinates, RAS+ millimetres.
    volume_ml
        Volume, millilitres.
    effect
        What ``amount`` does: multiply the MR signal, add Hounsfield units, or replace the voxels by them.
    amount
        Size of the effect.
    """

    place: str
    centre: tuple[float, float, float]
    volume_ml: float
    effect: Effect
    amount: float


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
        Where a lesion may lie, shape (I, J, K).
    grid
        The grid of the scan.

    Returns
    -------
    BoolArray
        Shape (I, J, K), one connected piece of ``volume_ml`` to within a voxel.
    """
    rng = random_stream(number, Stream.LESION)
    radius = (lesion.volume_ml * 1000.0 * 3.0 / (4.0 * np.pi)) ** (1.0 / 3.0)
    away = np.sqrt(((template - np.array(lesion.centre)) ** 2).sum(axis=-1))
    rough = ndimage.gaussian_filter(rng.standard_normal(grid.shape), 0.35 * radius / grid.spacing)
    level = np.where(eligible, away + 0.25 * radius * rough / rough.std(), np.inf)
    count = round(lesion.volume_ml / grid.voxel_ml)
    return _connected_to_seed(level, count)


def soft_edge(mask: BoolArray) -> Array:
    """Weigh the effect, shape (I, J, K): one deep in a lesion, falling off over about a voxel at its rim."""
    return np.asarray(ndimage.gaussian_filter(mask.astype(np.float64), 0.6))


def _connected_to_seed(level: Array, count: int) -> BoolArray:
    """Take the lowest ``count`` voxels of ``level`` that hang together with the lowest of all."""
    order = np.sort(level[np.isfinite(level)])
    seed = np.unravel_index(int(np.argmin(level)), level.shape)
    low, high = count - 1, order.size - 1
    while low < high:
        middle = (low + high) // 2
        if _piece(level, float(order[middle]), seed).sum() < count:
            low = middle + 1
        else:
            high = middle
    return _piece(level, float(order[low]), seed)


def _piece(level: Array, bound: float, seed: tuple[np.intp, ...]) -> BoolArray:
    """Find the connected component around ``seed`` of the voxels at or below ``bound``."""
    pieces, _ = ndimage.label(level <= bound)
    return np.asarray(pieces == pieces[seed])
