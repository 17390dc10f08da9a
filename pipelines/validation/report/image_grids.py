"""Figures of the report: grids of images, histograms, scatter plots of codes.

All are PNG bytes, and deterministic.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from anomaly.core.volume import FloatArray
from anomaly.evaluation.figures import COLOURS, GREY
from pipelines.validation.labelled_dataset import Labels

GAP_PIXELS = 2  # pixels between images, before they are enlarged
MAX_WIDTH_PIXELS, MAX_SCALE = 1140, 2  # of a grid: pixels, and enlargement
GAP_GREY = 0.25  # grey level between images
MAX_LABEL_LETTERS = 3  # longer tick labels are rotated
CLASS_COLOURS = (*COLOURS, "#999999", "#8B4513", "#F0E442")


def image_grid(images: FloatArray, columns: int) -> bytes:
    """Return a grid of images ``(N, H, W)`` or ``(N, H, W, 3)``, 0 to 1, row by row."""
    colour = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
    n, height, width, _ = colour.shape
    rows = -(-n // columns)
    canvas = np.full(
        (rows * (height + GAP_PIXELS) + GAP_PIXELS, columns * (width + GAP_PIXELS) + GAP_PIXELS, 3),
        GAP_GREY,
        dtype=np.float32,
    )
    for number, image in enumerate(colour):
        row, column = divmod(number, columns)
        top, left = GAP_PIXELS + row * (height + GAP_PIXELS), GAP_PIXELS + column * (width + GAP_PIXELS)
        canvas[top : top + height, left : left + width] = image.clip(0, 1)
    scale = min(MAX_SCALE, max(1, MAX_WIDTH_PIXELS // canvas.shape[1]))
    enlarged = np.kron((canvas * 255).round().astype(np.uint8), np.ones((scale, scale, 1), np.uint8))
    return _compressed_png(Image.fromarray(enlarged))


def histogram(shares: Mapping[str, npt.ArrayLike], names: Sequence[str]) -> bytes:
    """Return a bar chart of the frequency of each value, side by side for several sources of images."""
    figure, axes = _plot(5.2, 2.6)
    width = 0.8 / len(shares)
    for number, (source, values) in enumerate(shares.items()):
        places = np.arange(len(names)) + (number - (len(shares) - 1) / 2) * width
        axes.bar(places, values, width, label=source, color=(GREY, *COLOURS)[number])
    axes.set_xticks(np.arange(len(names)), names, fontsize=8)
    if max(map(len, names)) > MAX_LABEL_LETTERS:
        axes.tick_params("x", rotation=30)
    axes.set_ylabel("share of the images", fontsize=9)
    axes.legend(fontsize=7, frameon=False, ncols=len(shares), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _as_png(figure)


def points(values: Mapping[str, npt.ArrayLike], name: str) -> bytes:
    """Return a column of points for each name, with a line at their mean; the axis ends at 1."""
    figure, axes = _plot(5.2, 2.6)
    for place, some in enumerate(map(np.asarray, values.values())):
        axes.plot(np.full(some.shape, place), some, "o", markersize=3.5, color=COLOURS[0])
        axes.hlines(some.mean(), place - 0.3, place + 0.3, color=GREY, zorder=0)
    axes.set_xticks(np.arange(len(values)), list(values), fontsize=8)
    axes.set_ylim(top=1.005)
    axes.set_ylabel(name, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    return _as_png(figure)


def code_map(codes: FloatArray, labels: Labels, names: Sequence[str]) -> bytes:
    """Return a scatter plot of codes ``(N, 2)``, coloured by label ``(N,)``."""
    figure, axes = _plot(4.6, 4.2)
    for value, name in enumerate(names):
        selected = codes[labels == value]
        axes.plot(
            selected[:, 0],
            selected[:, 1],
            ".",
            markersize=2.5,
            color=CLASS_COLOURS[value % len(CLASS_COLOURS)],
            label=name,
        )
    axes.set_xlabel("first latent dimension", fontsize=9)
    axes.set_ylabel("second latent dimension", fontsize=9)
    axes.legend(fontsize=7, frameon=False, markerscale=4, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _as_png(figure)


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _as_png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    return _compressed_png(Image.open(drawn).convert("RGB"))


def _compressed_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.quantize(64).save(stream, format="png", optimize=True)
    return stream.getvalue()
