"""Figures of one scan and of a run, as PNG bytes.

Each figure is its own ``matplotlib.figure.Figure`` without global state. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from anomaly.core.scan_result import TemplateVolumes
from anomaly.core.volume import MaskArray
from anomaly.reports.panels import (  # fmt: skip
    AXIAL,
    CORONAL,
    INK,
    MUTED,
    OUTLINE,
    SAGITTAL,
    Array,
    Extent,
    PanelKind,
    Plane,
    Point,
    crop_to_foreground,
    draw_panel,
    label_panel,
    label_sides,
    overlay,
    signed_mm,
)
from anomaly.runs.reader import Display
from anomaly.scoring.retrieval import middle_slices

EVIDENCE_LABEL = "evidence (healthy standard deviations)"
BACKGROUND, REFERENCE, REFERENCE_TEXT, MARKER_COLOUR, FLAG_COLOUR = (
    "#000000",
    "#8a97a6",
    "#5b6775",
    "#334155",
    "#c2410c",
)
_PANEL_GAP_MM = 5.0
_MARGIN_MM = 9.0  # space around a slice for the orientation letters
_KINDS: tuple[tuple[PanelKind, str], ...] = (
    ("scan", "Scan"), ("reconstruction", "Pseudo-healthy reconstruction"), ("evidence", "Evidence on the scan")
)  # fmt: skip


def location_figure(
    volumes: TemplateVolumes, display: Display, point_mm: Point, marked: MaskArray, width_px: int = 1040
) -> bytes:
    """Draw three planes through one location: scan, pseudo-healthy reconstruction and evidence in each row.

    Parameters
    ----------
    volumes
        The scan on the template grid.
    display
        Intensity and colour scales, the same for all scans of the run.
    point_mm
        Intersection of the planes, MNI152 RAS millimetres.
    marked
        Voxels to outline on the evidence, ``(I, J, K)``.
    width_px
        Width of the image in pixels.
    """
    content, planes = crop_to_foreground(volumes, marked, display), (AXIAL, CORONAL, SAGITTAL)
    sizes = [content.size(plane) for plane in planes]
    column, canvas_up = max(width for width, _ in sizes), sum(height for _, height in sizes) + 2 * _PANEL_GAP_MM
    figure, axes = _canvas((3 * column + 2 * _PANEL_GAP_MM, canvas_up), width_px, head=0.30, side=0.85)
    top = canvas_up
    for plane, size in zip(planes, sizes, strict=True):
        for index, (kind, _) in enumerate(_KINDS):
            origin = (index * (column + _PANEL_GAP_MM) + (column - size[0]) / 2, top - size[1])
            draw_panel(axes, content, plane, point_mm, kind, origin)
            label_panel(axes, plane, point_mm, origin, size, first=index == 0)
        top -= size[1] + _PANEL_GAP_MM
    for index, (_, title) in enumerate(_KINDS):
        centre = index * (column + _PANEL_GAP_MM) + column / 2
        axes.text(centre, canvas_up + 3, title, color=INK, fontsize=10, ha="center", va="bottom")
    _colour_bar(figure, axes, display)
    return _png(figure)


def mosaic(volumes: TemplateVolumes, display: Display, marked: MaskArray, columns: int = 8, rows: int = 2) -> bytes:
    """Draw an overview of axial slices, from inferior to superior, with the evidence overlaid."""
    content = crop_to_foreground(volumes, marked, display)
    wide, deep = content.size(AXIAL)
    canvas = (columns * (wide + _PANEL_GAP_MM) - _PANEL_GAP_MM, rows * (deep + _PANEL_GAP_MM) - _PANEL_GAP_MM)
    figure, axes = _canvas(canvas, 1040, head=0.05, side=0.05)
    for index, share in enumerate(np.linspace(0.1, 0.9, columns * rows)):
        row, column = divmod(index, columns)
        origin = (column * (wide + _PANEL_GAP_MM), canvas[1] - row * (deep + _PANEL_GAP_MM) - deep)
        x, y, z = content.volumes.geometry.to_world(share * (np.array(content.volumes.geometry.shape) - 1))
        draw_panel(axes, content, AXIAL, (x, y, z), "overview", origin)
        axes.text(origin[0], origin[1], f"z {signed_mm(z)}", color=MUTED, fontsize=7, va="bottom")
        if index == 0:
            label_sides(axes, AXIAL, origin, (wide, deep), fontsize=8)
    return _png(figure)


def similar_figure(
    volumes: TemplateVolumes,
    display: Display,
    marked: MaskArray,
    titles: Sequence[str],
    slices: Mapping[str, Array],
    width_px: int = 1040,
) -> bytes:
    """Draw the middle slices of the scan next to those of similar healthy scans.

    Parameters
    ----------
    volumes, display, marked, width_px
        See :func:`location_figure`; marked voxels are outlined on the scan.
    titles
        One title per similar scan.
    slices
        Plane → uint8 ``(k, across, up)``, from :func:`anomaly.scoring.retrieval.middle_slices`.
    """
    rows = _comparison_rows(volumes, display, marked, slices)
    column, canvas_up = max(row.size[0] for row in rows), sum(row.size[1] for row in rows) + 2 * _PANEL_GAP_MM
    size_mm = ((1 + len(titles)) * (column + _PANEL_GAP_MM) - _PANEL_GAP_MM, canvas_up)
    figure, axes = _canvas(size_mm, width_px, head=0.5, side=0.1)
    x, y, z = volumes.geometry.to_world(np.array(volumes.geometry.shape) // 2)
    top = canvas_up
    for row in rows:
        for index, cut in enumerate(row.slices):
            left, bottom = index * (column + _PANEL_GAP_MM) + (column - row.size[0]) / 2, top - row.size[1]
            extent = (
                left + _MARGIN_MM,
                left + row.size[0] - _MARGIN_MM,
                bottom + _MARGIN_MM,
                top - _MARGIN_MM,
            )
            axes.imshow(cut, extent=extent, cmap="gray", origin="lower", vmin=0, vmax=255,
                        interpolation="bilinear", aspect="auto")  # fmt: skip
            if index == 0 and row.outline.any() and not row.outline.all():
                axes.contour(row.outline, levels=[127], extent=extent, colors=[OUTLINE], linewidths=0.9)
            label_panel(axes, row.plane, (x, y, z), (left, bottom), row.size, first=index == 0)
        top -= row.size[1] + _PANEL_GAP_MM
    for index, title in enumerate(["This scan", *titles]):
        centre = index * (column + _PANEL_GAP_MM) + column / 2
        axes.text(centre, canvas_up - 2, title, color=INK, fontsize=10, ha="center", va="bottom", linespacing=1.35)
    return _png(figure)


def thumbnail(volumes: TemplateVolumes, display: Display, point_mm: Point, height_px: int = 92) -> bytes:
    """Draw the axial slice through one location with the evidence overlaid, for a row of the worklist."""
    content = crop_to_foreground(volumes, np.zeros(volumes.mask.shape, dtype=bool), display)
    size = content.size(AXIAL)
    figure = Figure(figsize=(height_px * size[0] / size[1] / 100, height_px / 100), dpi=100, facecolor=BACKGROUND)
    axes = _bare_axes(figure, (0, 0, 1, 1), size)
    draw_panel(axes, content, AXIAL, point_mm, "overview", (0.0, 0.0))
    return _png(figure, palette=True)


def score_distribution(
    reference: Sequence[float],
    threshold: float | None,
    scores: Sequence[tuple[float, bool | None]],
    name: str,
    size_px: tuple[int, int] = (560, 190),
) -> bytes:
    """Draw the scores: healthy reference as a histogram, threshold as a line, scans of the run as markers below.

    Parameters
    ----------
    reference
        Scores of healthy scans; may be empty.
    threshold
        A scan with a higher score is flagged; None without a calibration.
    scores
        Score and flag of each scan: triangle = flagged, circle = not flagged, diamond = no calibration.
    name
        Name of the score, for the axis label.
    size_px
        Width and height in pixels.
    """
    figure = Figure(figsize=(size_px[0] / 100, size_px[1] / 100), dpi=200)
    figure.patch.set_alpha(0)
    foot, head = 46 / size_px[1], 22 / size_px[1]
    axes = figure.add_axes((0.012, foot, 0.976, 1 - foot - head))
    axes.patch.set_alpha(0)
    values = np.array([*reference, *(score for score, _ in scores)], dtype=float)
    logarithmic = bool(values.size and values.min() > 0 and values.max() > 12 * np.median(reference or values))
    if logarithmic:
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    tallest = _histogram(axes, np.asarray(reference, dtype=float), values, logarithmic)
    _marks(axes, scores, tallest)
    _labels(axes, len(reference), threshold)
    axes.set_ylim(-0.28 * tallest, (1.06 if reference else 0.0) * tallest)
    axes.set_xlabel(f"score: {name.replace('_', ' ')}" + (" (logarithmic)" if logarithmic else ""), fontsize=7.5)
    axes.tick_params(axis="x", labelsize=7, length=2.5)
    axes.set_yticks([])
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return _png(figure, transparent=True, palette=True)


def data_uri(png: bytes) -> str:
    """Encode PNG bytes as a ``data:`` URI, to embed the image in a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@dataclass(frozen=True, eq=False)
class _ComparisonRow:
    """One plane of several scans: slices with row 0 at the bottom, and their size with margins in mm."""

    plane: Plane
    size: tuple[float, float]
    slices: list[Array]
    outline: Array


def _comparison_rows(
    volumes: TemplateVolumes, display: Display, marked: MaskArray, slices: Mapping[str, Array]
) -> list[_ComparisonRow]:
    """Return the middle slices of the scan and of similar ones, cropped to where any of them is nonzero."""
    own, outlines = middle_slices(volumes.scan, display.intensity_max), middle_slices(marked.astype(np.float32), 1)
    rows = []
    for plane in (AXIAL, CORONAL, SAGITTAL):
        stack = np.stack([own[plane.name], *slices[plane.name]])
        nonzero = np.argwhere(stack.any(axis=0)) if stack.any() else np.argwhere(stack[0] == 0)
        (left, low), (right, high) = (
            np.maximum(nonzero.min(axis=0) - 1, 0),
            np.minimum(nonzero.max(axis=0) + 2, stack[0].shape),
        )
        across, up = (volumes.geometry.spacing[axis] for axis in plane.axes)
        cut = [slice_[left:right, low:high][:: plane.sign].T for slice_ in (*stack, outlines[plane.name])]
        size = (float(right - left) * across + 2 * _MARGIN_MM, float(high - low) * up + 2 * _MARGIN_MM)
        rows.append(_ComparisonRow(plane, size, cut[:-1], cut[-1]))
    return rows


def _colour_bar(figure: Figure, axes: Axes, display: Display) -> None:
    left, bottom, width, height = axes.get_position().bounds
    bar = figure.add_axes((left + width + 0.018, bottom + 0.18 * height, 0.016, 0.64 * height))
    ramp = np.linspace(0, display.evidence_max, 256)
    colours = overlay(ramp, display)[:, None, :]
    colours = colours[..., :3] * colours[..., 3:] + 0.30 * (1 - colours[..., 3:])  # blended with grey tissue
    bar.imshow(colours, origin="lower", aspect="auto", extent=(0, 1, 0, display.evidence_max))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.tick_params(colors=INK, labelsize=8, length=2)
    bar.set_ylabel(EVIDENCE_LABEL, color=INK, fontsize=8, labelpad=4)
    bar.yaxis.set_label_position("right")
    if display.voxel_threshold is not None and display.voxel_threshold < display.evidence_max:
        bar.axhline(display.voxel_threshold, color=OUTLINE, linewidth=1.4)
        bar.text(0.5, -0.02, f"line: voxel\nthreshold\n{display.voxel_threshold:.3g}", color=OUTLINE, fontsize=7.5,
                 ha="center", va="top", transform=bar.transAxes)  # fmt: skip


def _histogram(axes: Axes, reference: Array, values: Array, logarithmic: bool) -> float:
    if not values.size:
        return 1.0
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low or abs(high) or 1.0)
    span = (low / 1.1, high * 1.1) if logarithmic else (low - pad, high + pad)
    axes.set_xlim(*span)
    if not reference.size:
        return 1.0
    edges = np.geomspace(*span, 41) if logarithmic else np.linspace(*span, 41)
    counts, *_ = axes.hist(reference, bins=list(edges), color=REFERENCE, alpha=0.75, edgecolor="none")
    return float(np.max(counts))


def _labels(axes: Axes, healthy: int, threshold: float | None) -> None:
    across, label_x = axes.get_xaxis_transform(), 0.0
    if threshold is not None:
        axes.axvline(threshold, color=FLAG_COLOUR, linewidth=1.3, linestyle=(0, (4, 2)))
        axes.text(
            threshold,
            1.03,
            f"threshold {threshold:.3g}",
            color=FLAG_COLOUR,
            fontsize=7,
            ha="center",
            transform=across,
        )
        position = axes.transAxes.inverted().transform(axes.transData.transform((threshold, 0.0)))
        label_x = 1.0 if position[0] < 0.45 else 0.0
    if healthy:
        axes.text(label_x, 1.03, f"{healthy} healthy reference scans", color=REFERENCE_TEXT, fontsize=7,
                  ha="right" if label_x else "left", transform=axes.transAxes)  # fmt: skip


def _marks(axes: Axes, scores: Sequence[tuple[float, bool | None]], tallest: float) -> None:
    styles: tuple[tuple[bool | None, str, str, str], ...] = (
        (False, "o", "none", MARKER_COLOUR),
        (None, "D", "none", MARKER_COLOUR),
        (True, "^", FLAG_COLOUR, FLAG_COLOUR),
    )  # fmt: skip
    axes.axhline(0, color=REFERENCE_TEXT, linewidth=0.6)
    for flag, marker, face, edge in styles:
        chosen = [score for score, flagged in scores if flagged is flag]
        below = [-0.14 * tallest] * len(chosen)
        axes.plot(chosen, below, marker, markersize=5.5, markerfacecolor=face, markeredgecolor=edge, clip_on=False)


def _canvas(size_mm: tuple[float, float], width_px: int, head: float, side: float) -> tuple[Figure, Axes]:
    width = width_px / 100
    drawn = width - side - 0.1
    height = drawn * size_mm[1] / size_mm[0]
    figure = Figure(figsize=(width, height + head + 0.1), dpi=100, facecolor=BACKGROUND)
    extent = (0.1 / width, 0.1 / (height + head + 0.1), drawn / width, height / (height + head + 0.1))
    return figure, _bare_axes(figure, extent, size_mm)


def _bare_axes(figure: Figure, extent: Extent, size_mm: tuple[float, float]) -> Axes:
    axes = figure.add_axes(extent)
    axes.set_axis_off()
    axes.set_xlim(0, size_mm[0])
    axes.set_ylim(0, size_mm[1])
    return axes


def _png(figure: Figure, palette: bool = False, transparent: bool = False) -> bytes:
    stream = BytesIO()
    # The file holds no software version, so that the same scan gives the same bytes.
    figure.savefig(stream, format="png", transparent=transparent, metadata={"Software": None},
                   facecolor="none" if transparent else BACKGROUND)  # fmt: skip
    return _with_palette(stream.getvalue()) if palette else stream.getvalue()


def _with_palette(png: bytes) -> bytes:
    """Reduce a PNG to 256 colours: a quarter of the size without a visible difference at this scale."""
    from PIL import Image

    stream = BytesIO()
    with Image.open(BytesIO(png)) as image:
        image.quantize(256, method=Image.Quantize.FASTOCTREE).save(stream, format="png", optimize=True)
    return stream.getvalue()
