"""The voxel grid of a scan: orientation of its axes, spacing, obliquity, field of view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sample_data.recipe.anatomy import Array
from sample_data.recipe.subjects import Stream, random_stream

AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Letter of a direction to (axis, sign), RAS+."""

ORIENTATIONS = {"RAS": 0.5, "LPS": 0.25, "PSR": 0.25}
SPACINGS_MM = {(4.0, 4.0, 4.0): 0.75, (3.5, 3.5, 5.0): 0.25}
OBLIQUE_SHARE = 0.25


@dataclass(frozen=True)
class FieldOfView:
    """The box that a scan covers, in RAS+ millimetres: ``centre`` and ``extent`` along x, y, z."""

    centre: tuple[float, float, float]
    extent: tuple[float, float, float]


BRAIN = FieldOfView((0.0, -17.0, 9.0), (172.0, 212.0, 180.0))
HEAD = FieldOfView((0.0, -12.0, 20.0), (188.0, 228.0, 176.0))


@dataclass(frozen=True)
class Grid:
    """Voxel lattice of a scan.

    Parameters
    ----------
    shape
        Voxels along the three axes.
    affine
        Shape (4, 4), voxel index to RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: Array

    @property
    def spacing(self) -> Array:
        """Edge lengths of a voxel along its three axes, shape (3,), millimetres."""
        return np.asarray(np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def points(self) -> Array:
        """Voxel centres, shape (I, J, K, 3), RAS+ millimetres."""
        index = np.stack(np.meshgrid(*(np.arange(count) for count in self.shape), indexing="ij"), axis=-1)
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3])

    def within_slices(self, thickest_mm: float) -> list[Grid]:
        """Return grids displaced along the third axis that cover a slice; only this grid if its slices are thin."""
        thickness = float(self.spacing[2])
        if thickness <= thickest_mm:
            return [self]
        return [self._displaced(step) for step in (-1 / 3, 0.0, 1 / 3)]

    def _displaced(self, slices: float) -> Grid:
        affine = self.affine.copy()
        affine[:3, 3] += slices * affine[:3, 2]
        return Grid(self.shape, affine)


def draw_grid(number: int, view: FieldOfView) -> Grid:
    """Draw the grid of a scan: one of ``ORIENTATIONS`` and ``SPACINGS_MM``, for some scans slightly oblique."""
    rng = random_stream(number, Stream.GRID)
    codes = rng.choice(list(ORIENTATIONS), p=list(ORIENTATIONS.values()))
    spacing = list(SPACINGS_MM)[int(rng.choice(len(SPACINGS_MM), p=list(SPACINGS_MM.values())))]
    tilt = np.deg2rad(rng.uniform(4.0, 12.0) * rng.choice([-1, 1]))
    return make_grid(view, str(codes), spacing, float(tilt) if rng.random() < OBLIQUE_SHARE else 0.0)


def make_grid(view: FieldOfView, codes: str, spacing: tuple[float, float, float], tilt: float = 0.0) -> Grid:
    """Make a grid that covers a field of view.

    Parameters
    ----------
    view
        The box to cover.
    codes
        Directions in which the three voxel indices grow, such as ``LPS``.
    spacing
        Edge lengths of a voxel along its three axes, millimetres.
    tilt
        Rotation about the left-right axis, radians, as of slices parallel to the skull base.
    """
    directions = np.zeros((3, 3))
    for column, code in enumerate(codes):
        axis, sign = AXES[code]
        directions[axis, column] = sign
    extent = np.abs(directions).T @ np.array(view.extent)
    i, j, k = (int(count) for count in np.round(extent / spacing))
    affine = np.eye(4)
    affine[:3, :3] = _about_x(tilt) @ directions * spacing
    affine[:3, 3] = np.array(view.centre) - affine[:3, :3] @ ((np.array([i, j, k]) - 1) / 2)
    # NIfTI stores the affine in single precision. Rounded here, so that the stored affine is exactly this one.
    return Grid((i, j, k), affine.astype(np.float32).astype(np.float64))


def _about_x(angle: float) -> Array:
    """Rotation about the left-right axis, shape (3, 3)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
