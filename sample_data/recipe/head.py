"""Add skull, scalp and skull base to the template brain, from distances and a few ellipsoids.

The template has no head, so one is drawn: layers at fixed distances from the cavity of the brain, and the landmarks
at the base of a head CT (orbits, sinuses, petrous bones, neck).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sample_data.recipe.anatomy import SHAPE, STEP_MM, Anatomy, Array, BoolArray, grid_points, smooth
from sample_data.recipe.subjects import Stream, random_stream

IntArray = NDArray[np.int64]
Point = tuple[float, float, float]

HEAD_TISSUES: Final = ("table", "diploe", "fat", "soft", "eye", "brain_fluid")

SKULL_SCALES: Final = (0.75, 1.0, 1.25)
"""Thickness of skull and scalp of the subjects, relative to the average."""

_FLUID_MM = 2.0
_SKULL_MM = 7.0
_CAVITY_CLOSING_MM = 18.0
_FLESH_CLOSING_MM = 24.0
_PETROUS: tuple[Point, Point] = ((46.0, -22.0, -37.0), (24.0, 11.0, 11.0))
_MASTOID_AIR: tuple[Point, Point] = ((58.0, -32.0, -42.0), (8.0, 10.0, 12.0))
_ORBIT: tuple[Point, Point] = ((32.0, 55.0, -36.0), (18.0, 26.0, 16.0))
_EYE: tuple[Point, Point] = ((32.0, 67.0, -36.0), (12.0, 12.0, 12.0))
_MAXILLARY: tuple[Point, Point] = ((27.0, 50.0, -70.0), (13.0, 17.0, 13.0))
_CHEEK: tuple[Point, Point] = ((52.0, 48.0, -52.0), (13.0, 20.0, 11.0))
_SPHENOID: tuple[Point, Point] = ((0.0, 22.0, -42.0), (22.0, 26.0, 16.0))
_SPHENOID_AIR: tuple[Point, Point] = ((0.0, 26.0, -42.0), (12.0, 12.0, 9.0))
_ETHMOID_AIR: tuple[Point, Point] = ((0.0, 56.0, -42.0), (9.0, 22.0, 15.0))
_NASAL_AIR: tuple[Point, Point] = ((0.0, 58.0, -68.0), (9.0, 30.0, 14.0))
_FRONTAL_SINUS: tuple[Point, Point] = ((10.0, 73.0, -18.0), (9.0, 4.0, 9.0))
_FACE: tuple[Point, Point] = ((0.0, 36.0, -62.0), (70.0, 62.0, 56.0))
_NOSE: tuple[Point, Point] = ((0.0, 92.0, -66.0), (13.0, 20.0, 18.0))
_NECK: tuple[Point, Point] = ((0.0, -46.0, -90.0), (66.0, 66.0, 62.0))


def with_head(brain: Anatomy, skull_scale: float = 1.0) -> Anatomy:
    """Add the tissues of ``HEAD_TISSUES`` to the maps of a brain.

    Parameters
    ----------
    brain
        The maps of :func:`~sample_data.recipe.anatomy.load_brain`.
    skull_scale
        Thickness of skull and scalp, relative to the average.

    Returns
    -------
    Anatomy
        The maps of ``brain`` and, as fractions, the outer and inner ``table`` of the skull, ``diploe``, ``fat``,
        ``soft`` (muscle and skin), ``eye`` and ``brain_fluid`` (between brain and skull). What is left is air.
    """
    outside = _distance_from(_cavity(brain.maps["brain"] > 0.5))
    labels = _layers(outside, skull_scale)
    _draw_base(labels, outside, _FLUID_MM + skull_scale * _SKULL_MM)
    # The fractions of the brain are subtracted, so that those of a voxel never exceed one together.
    free_fraction = 1.0 - np.clip(brain.maps["grey"] + brain.maps["white"] + brain.maps["csf"], 0.0, 1.0)
    maps = {name: smooth(labels == code) for code, name in enumerate(HEAD_TISSUES, start=1)}
    total = sum(maps.values()) + smooth(labels == 0)
    return Anatomy({**brain.maps, **{name: free_fraction * fraction / total for name, fraction in maps.items()}})


def _cavity(brain: BoolArray) -> BoolArray:
    """Find the inside of the skull: the brain, closed over its fissures, continued into the spinal canal."""
    lowest = int(np.flatnonzero(brain.any(axis=(0, 1)))[0])
    continued = brain.copy()
    continued[:, :, :lowest] = brain[:, :, lowest, None]
    return np.asarray(ndimage.binary_fill_holes(_closed(continued, _CAVITY_CLOSING_MM)))


def _closed(region: BoolArray, radius_mm: float) -> BoolArray:
    """Close a region over its clefts; it is taken to go on below the grid as it leaves it."""
    pad = int(np.ceil(radius_mm / STEP_MM)) + 1
    sideways = np.pad(region, ((pad, pad), (pad, pad), (0, pad)))
    padded = np.pad(sideways, ((0, 0), (0, 0), (pad, 0)), mode="edge")
    grown = _distance_from(padded) < radius_mm
    closed = ndimage.distance_transform_edt(grown, sampling=STEP_MM) > radius_mm
    return np.asarray(closed | padded)[pad:-pad, pad:-pad, pad:-pad]


def _distance_from(region: BoolArray) -> Array:
    """Distance to a region in millimetres, zero inside it."""
    return np.asarray(ndimage.distance_transform_edt(~region, sampling=STEP_MM))


def draw_skull_scale(number: int) -> float:
    """Draw the thickness of a subject's skull, one of ``SKULL_SCALES``."""
    return float(random_stream(number, Stream.SKULL).choice(SKULL_SCALES))


def _layers(outside: Array, skull_scale: float) -> IntArray:
    """Labels (index into ``HEAD_TISSUES`` plus one; zero is air) by distance from the cavity in millimetres."""
    labels = np.zeros(outside.shape, dtype=np.int64)
    bounds = ((13.0, "soft"), (11.0, "fat"), (_SKULL_MM, "table"), (4.8, "diploe"), (2.2, "table"))
    for bound, name in bounds:
        labels[outside <= _FLUID_MM + skull_scale * bound] = HEAD_TISSUES.index(name) + 1
    labels[outside <= _FLUID_MM] = HEAD_TISSUES.index("brain_fluid") + 1
    return labels


def _draw_base(labels: IntArray, outside: Array, skull_mm: float) -> None:
    """Draw the face, the neck and the base of the skull around the vault, in place.

    ``skull_mm`` is the distance of the outside of the skull from the cavity.
    """
    points, pattern = grid_points(), _marbling()
    free = outside > skull_mm
    flesh = _closed((labels > 0) | _ellipsoid(points, _FACE) | _ellipsoid(points, _NECK), _FLESH_CLOSING_MM)
    flesh |= _ellipsoid(points, _NOSE)
    skin = ndimage.distance_transform_edt(flesh, sampling=STEP_MM) <= 4.0
    _paint(labels, flesh & (labels == 0), "soft")
    _paint(labels, flesh & ~skin & free & (pattern > 0.4), "fat")
    base = outside > _FLUID_MM
    _paint(labels, _pair(points, _PETROUS) & base, "table")
    _paint(labels, (_ellipsoid(points, _SPHENOID) | _pair(points, _CHEEK)) & base, "diploe")
    for cavity in (_ORBIT, _MAXILLARY, _FRONTAL_SINUS):
        _paint(labels, _pair(points, cavity, margin=2.5) & base, "table")
    _paint(labels, _pair(points, _ORBIT) & base, "fat")
    _paint(labels, _pair(points, _EYE) & free, "eye")
    air = _ellipsoid(points, _SPHENOID_AIR) | _ellipsoid(points, _ETHMOID_AIR) | _ellipsoid(points, _NASAL_AIR)
    air |= _pair(points, _MAXILLARY) | _pair(points, _FRONTAL_SINUS)
    labels[air & base] = 0
    labels[_pair(points, _MASTOID_AIR) & base & (pattern > 0.0)] = 0


def _paint(labels: IntArray, where: BoolArray, name: str) -> None:
    labels[where] = HEAD_TISSUES.index(name) + 1


def _ellipsoid(points: Array, shape: tuple[Point, Point], margin: float = 0.0) -> BoolArray:
    """Return which ``points`` (..., 3) are in the ellipsoid (centre, radii), enlarged by ``margin`` millimetres."""
    centre, radii = np.array(shape[0]), np.array(shape[1]) + margin
    return np.asarray((((points - centre) / radii) ** 2).sum(axis=-1) <= 1.0)


def _pair(points: Array, shape: tuple[Point, Point], margin: float = 0.0) -> BoolArray:
    """Return which points are in an ellipsoid on the right or in its mirror image on the left."""
    return _ellipsoid(np.abs(points) * (1, 0, 0) + points * (0, 1, 1), shape, margin)


def _marbling() -> Array:
    """Draw a fixed irregular pattern for fat and mastoid cells, shape (I, J, K), mean 0 and deviation 1."""
    noise = np.random.default_rng(1).standard_normal(SHAPE)
    pattern = ndimage.gaussian_filter(noise, (2.0, 2.0, 4.0))
    return np.asarray(pattern / pattern.std())
