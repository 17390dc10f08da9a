"""One panel of a figure: a plane through a volume, the evidence overlay, its outline and orientation letters.

Radiological convention: the patient's right is on the left of the image. In sagittal planes the nose points
right, as in the viewer. All scans of a run share one colour scale of the evidence (``Display``).
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
Position = tuple[float, float]
Extent = tuple[float, float, float, float]
PanelKind = Literal["scan", "reconstruction", "evidence", "overview"]

EVIDENCE_COLOURS = ListedColormap(mpl.colormaps["inferno"](np.linspace(0.28, 1.0, 256)), name="evidence")
INK, MUTED, OUTLINE = "#e8e6e3", "#9aa0a6", "#4de1ff"
_MARGIN_MM = 5.0


@dataclass(frozen=True)
class Plane:
    """An anatomical plane: the axis it is perpendicular to, its name and its orientation letters."""

    name: str
    axis: int
    letter: str
    left: str
    right: str

    @property
    def axes(self) -> tuple[int, int]:
        """Return the horizontal and the vertical axis of the image."""
        across, up = (axis for axis in range(3) if axis != self.axis)
        return across, up

    @property
    def sign(self) -> int:
        """Return −1 if the image's horizontal runs against the world axis, else 1."""
        return 1 if self.axis == 0 else -1


AXIAL = Plane("axial", 2, "z", "R", "L")
CORONAL = Plane("coronal", 1, "y", "R", "L")
SAGITTAL = Plane("sagittal", 0, "x", "P", "A")


@dataclass(frozen=True, eq=False)
class PanelContent:
    """Volumes cropped to the brain, voxels to outline, and the display scales of the run."""

    volumes: TemplateVolumes
    marked: MaskArray
    display: Display

    def size(self, plane: Plane) -> tuple[float, float]:
        """Return the width and height of a panel in millimetres."""
        across, up = plane.axes
        return self.volumes.geometry.extent_mm[across], self.volumes.geometry.extent_mm[up]


def crop_to_foreground(volumes: TemplateVolumes, marked: MaskArray, display: Display) -> PanelContent:
    """Crop the volumes to the foreground plus a margin of 5 mm."""
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
    return PanelContent(TemplateVolumes(parts[0], parts[1], parts[2], mask, geometry), marked[box], display)


def draw_panel(
    axes: Axes, content: PanelContent, plane: Plane, point_mm: Point, kind: PanelKind, origin: Position
) -> None:
    """Draw the plane through a point; ``origin`` is its lower left corner on the canvas, in millimetres."""
    volumes, display = content.volumes, content.display
    base = volumes.reconstruction if kind == "reconstruction" else volumes.scan
    image, extent = slice_of(base, volumes.geometry, plane, point_mm)
    shift = (origin[0] - extent[0], origin[1] - extent[2])
    moved = (extent[0] + shift[0], extent[1] + shift[0], extent[2] + shift[1], extent[3] + shift[1])
    axes.imshow(image, extent=moved, cmap="gray", origin="lower", interpolation="bilinear", aspect="auto",
                vmin=display.intensity_min, vmax=display.intensity_max)  # fmt: skip
    if kind in ("evidence", "overview"):
        values, _ = slice_of(volumes.evidence, volumes.geometry, plane, point_mm)
        colours = overlay(values, display)
        axes.imshow(colours, extent=moved, origin="lower", interpolation="bilinear", aspect="auto")
        inside, _ = slice_of(content.marked, volumes.geometry, plane, point_mm)
        if inside.any() and not inside.all():
            axes.contour(inside.astype(float), levels=[0.5], extent=moved, colors=[OUTLINE], linewidths=0.9)
    if kind != "overview":
        across, up = plane.axes
        _draw_crosshair(axes, (plane.sign * point_mm[across] + shift[0], point_mm[up] + shift[1]))


def overlay(evidence: Array, display: Display) -> Array:
    """Return RGBA colours of evidence: almost transparent below the voxel threshold, nearly opaque above it."""
    colours = EVIDENCE_COLOURS(np.clip(evidence / display.evidence_max, 0, 1))
    solid = display.voxel_threshold or 0.5 * display.evidence_max
    colours[..., 3] = np.where(evidence >= solid, 0.9, 0.4 * np.clip(evidence / solid, 0, 1) ** 3)
    return np.asarray(colours)


def slice_of(voxels: Array, geometry: Geometry, plane: Plane, point_mm: Point) -> tuple[Array, Extent]:
    """Return the slice to draw, ``(rows, columns)`` with row 0 at the bottom, and its extent in millimetres.

    The horizontal extent is the world coordinate times ``plane.sign``, so image left is the patient's right.
    """
    index = int(np.clip(round(geometry.to_index(point_mm)[plane.axis]), 0, geometry.shape[plane.axis] - 1))
    across, up = plane.axes
    image = np.take(voxels, index, axis=plane.axis)[:: plane.sign].T
    ends = geometry.to_world(np.outer((0, 1), np.array(geometry.shape) - 1))
    half = np.array(geometry.spacing) / 2
    left, right = sorted(plane.sign * ends[:, across])
    return image, (left - half[across], right + half[across], ends[0, up] - half[up], ends[1, up] + half[up])


def _draw_crosshair(axes: Axes, centre: tuple[float, float]) -> None:
    x, y = centre
    for start, end in ((10.0, 17.0), (-17.0, -10.0)):
        axes.plot([x + start, x + end], [y, y], color=INK, linewidth=0.8, alpha=0.9)
        axes.plot([x, x], [y + start, y + end], color=INK, linewidth=0.8, alpha=0.9)


def label_panel(
    axes: Axes, plane: Plane, point_mm: Point, origin: Position, size: tuple[float, float], first: bool
) -> None:
    """Draw the orientation letters and, in the first panel of a row, the plane and its position."""
    label_sides(axes, plane, origin, size, fontsize=9)
    if first:
        text = f"{plane.name}\n{plane.letter} = {signed_mm(point_mm[plane.axis])} mm"
        axes.text(origin[0], origin[1], text, color=MUTED, fontsize=8, va="bottom", ha="left", linespacing=1.3)


def label_sides(axes: Axes, plane: Plane, origin: Position, size: tuple[float, float], fontsize: float) -> None:
    """Draw the orientation letters at the left and right edge of the image."""
    middle = origin[1] + size[1] / 2
    axes.text(origin[0] + 1, middle, plane.left, color=INK, fontsize=fontsize, va="center", ha="left")
    axes.text(origin[0] + size[0] - 1, middle, plane.right, color=INK, fontsize=fontsize, va="center", ha="right")


def signed_mm(value: float) -> str:
    """Format a coordinate as whole millimetres with a sign."""
    return f"{round(value):+d}".replace("-", "−") if round(value) else "0"
