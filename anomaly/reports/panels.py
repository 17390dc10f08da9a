"""One panel of a figure: a plane through a volume, its overlay, its outline, its letters.

Radiological convention: the patient's right is on the left of the picture; in sagittal planes the nose points
right, as in the viewer. Evidence has one colour scale for a whole run (``Display``), never one per scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from anomaly.core.scan_result import TemplateVolumes
from anomaly.core.volume import Geometry, MaskArray
from anomaly.runs.reader import Display

Array = npt.NDArray[Any]
Point = tuple[float, float, float]
Place = tuple[float, float]
Extent = tuple[float, float, float, float]
Kind = Literal["scan", "reconstruction", "evidence", "overview"]

EVIDENCE_COLOURS = ListedColormap(mpl.colormaps["inferno"](np.linspace(0.28, 1.0, 256)), name="evidence")
INK, QUIET, OUTLINE = "#e8e6e3", "#9aa0a6", "#4de1ff"
_MARGIN_MM = 5.0


@dataclass(frozen=True)
class Plane:
    """One of the three planes: which axis it cuts, and how it is named and labelled."""

    name: str
    axis: int
    letter: str
    left: str
    right: str

    @property
    def axes(self) -> tuple[int, int]:
        """Return the axes of the picture: the one across and the one up."""
        across, up = (axis for axis in range(3) if axis != self.axis)
        return across, up

    @property
    def sign(self) -> int:
        """Return −1 where the picture's horizontal runs against the world's axis."""
        return 1 if self.axis == 0 else -1


AXIAL = Plane("axial", 2, "z", "R", "L")
CORONAL = Plane("coronal", 1, "y", "R", "L")
SAGITTAL = Plane("sagittal", 0, "x", "P", "A")


@dataclass(frozen=True, eq=False)
class Shown:
    """What the panels of one figure draw: the brain's part of the volumes, on the run's scales."""

    volumes: TemplateVolumes
    marked: MaskArray
    display: Display

    def size(self, plane: Plane) -> tuple[float, float]:
        """Return width and height of a panel in millimetres."""
        across, up = plane.axes
        return self.volumes.geometry.extent_mm[across], self.volumes.geometry.extent_mm[up]


def shown(volumes: TemplateVolumes, marked: MaskArray, display: Display) -> Shown:
    """Cut the volumes to the foreground and a margin."""
    where = np.argwhere(volumes.mask) if volumes.mask.any() else np.argwhere(~volumes.mask)
    margin = np.ceil(_MARGIN_MM / np.array(volumes.geometry.spacing)).astype(int)
    first = np.maximum(where.min(axis=0) - margin, 0)
    last = np.minimum(where.max(axis=0) + margin + 1, volumes.geometry.shape)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    affine = np.array(volumes.geometry.affine)
    affine[:3, 3] = volumes.geometry.to_world(first)
    mask = volumes.mask[box]
    geometry = Geometry(mask.shape, affine)
    parts = [part[box] for part in (volumes.scan, volumes.reconstruction, volumes.evidence)]
    return Shown(TemplateVolumes(parts[0], parts[1], parts[2], mask, geometry), marked[box], display)


def draw_panel(axes: Axes, what: Shown, plane: Plane, point_mm: Point, kind: Kind, origin: Place) -> None:
    """Draw the plane through a point, its lower left corner at ``origin`` millimetres of the canvas."""
    volumes, display = what.volumes, what.display
    base = volumes.reconstruction if kind == "reconstruction" else volumes.scan
    picture, extent = slice_of(base, volumes.geometry, plane, point_mm)
    shift = (origin[0] - extent[0], origin[1] - extent[2])
    moved = (extent[0] + shift[0], extent[1] + shift[0], extent[2] + shift[1], extent[3] + shift[1])
    axes.imshow(picture, extent=moved, cmap="gray", origin="lower", interpolation="bilinear", aspect="auto",
                vmin=display.intensity_min, vmax=display.intensity_max)  # fmt: skip
    if kind in ("evidence", "overview"):
        values, _ = slice_of(volumes.evidence, volumes.geometry, plane, point_mm)
        colours = overlay(values, display)
        axes.imshow(colours, extent=moved, origin="lower", interpolation="bilinear", aspect="auto")
        inside, _ = slice_of(what.marked, volumes.geometry, plane, point_mm)
        if inside.any() and not inside.all():
            axes.contour(inside.astype(float), levels=[0.5], extent=moved, colors=[OUTLINE], linewidths=0.9)
    if kind != "overview":
        across, up = plane.axes
        _cross(axes, (plane.sign * point_mm[across] + shift[0], point_mm[up] + shift[1]))


def overlay(evidence: Array, display: Display) -> Array:
    """Return RGBA colours of evidence on the fixed scale: faint below the voxel threshold, solid from it on."""
    colours = EVIDENCE_COLOURS(np.clip(evidence / display.evidence_max, 0, 1))
    solid = display.voxel_threshold or 0.5 * display.evidence_max
    colours[..., 3] = np.where(evidence >= solid, 0.9, 0.4 * np.clip(evidence / solid, 0, 1) ** 3)
    return np.asarray(colours)


def slice_of(voxels: Array, geometry: Geometry, plane: Plane, point_mm: Point) -> tuple[Array, Extent]:
    """Return a plane as it is drawn, ``(rows, columns)`` with row 0 at the bottom, and its extent in millimetres.

    The extent's horizontal is the world's axis times ``plane.sign``: picture left is the patient's right.
    """
    index = int(np.clip(round(geometry.to_index(point_mm)[plane.axis]), 0, geometry.shape[plane.axis] - 1))
    across, up = plane.axes
    picture = np.take(voxels, index, axis=plane.axis)[:: plane.sign].T
    ends = geometry.to_world(np.outer((0, 1), np.array(geometry.shape) - 1))
    half = np.array(geometry.spacing) / 2
    left, right = sorted(plane.sign * ends[:, across])
    return picture, (left - half[across], right + half[across], ends[0, up] - half[up], ends[1, up] + half[up])


def _cross(axes: Axes, centre: tuple[float, float]) -> None:
    x, y = centre
    for start, end in ((10.0, 17.0), (-17.0, -10.0)):
        axes.plot([x + start, x + end], [y, y], color=INK, linewidth=0.8, alpha=0.9)
        axes.plot([x, x], [y + start, y + end], color=INK, linewidth=0.8, alpha=0.9)


def label_panel(
    axes: Axes, plane: Plane, point_mm: Point, origin: Place, size: tuple[float, float], first: bool
) -> None:
    """Write the letters of both sides and, in the first panel of a row, the plane and its position."""
    sides(axes, plane, origin, size, fontsize=9)
    if first:
        text = f"{plane.name}\n{plane.letter} = {signed(point_mm[plane.axis])} mm"
        axes.text(origin[0], origin[1], text, color=QUIET, fontsize=8, va="bottom", ha="left", linespacing=1.3)


def sides(axes: Axes, plane: Plane, origin: Place, size: tuple[float, float], fontsize: float) -> None:
    """Write which side of the patient is on which side of the picture."""
    middle = origin[1] + size[1] / 2
    axes.text(origin[0] + 1, middle, plane.left, color=INK, fontsize=fontsize, va="center", ha="left")
    axes.text(origin[0] + size[0] - 1, middle, plane.right, color=INK, fontsize=fontsize, va="center", ha="right")


def signed(value: float) -> str:
    """Return whole millimetres with their sign."""
    return f"{round(value):+d}".replace("-", "−") if round(value) else "0"
