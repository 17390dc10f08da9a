"""Pictures of pictures: sheets, histograms, maps of codes. All as PNG bytes, the same for the same input."""

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

GAP = 2  # pixels between pictures, before they are enlarged
WIDEST, LARGEST = 1140, 2  # of a sheet, pixels; how much it may be enlarged
PAPER = 0.25  # grey between pictures
SHORT = 3  # letters of names that stand beside one another
TEN = (*COLOURS, "#999999", "#8B4513", "#F0E442")


def sheet(pictures: FloatArray, columns: int) -> bytes:
    """Return pictures ``(N, H, W)`` or ``(N, H, W, 3)``, 0 to 1, row by row; places left over are empty."""
    colour = pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], 3, axis=3)
    n, height, width, _ = colour.shape
    rows = -(-n // columns)
    paper = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), PAPER, dtype=np.float32)
    for number, picture in enumerate(colour):
        row, column = divmod(number, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        paper[top : top + height, left : left + width] = picture.clip(0, 1)
    scale = min(LARGEST, max(1, WIDEST // paper.shape[1]))
    enlarged = np.kron((paper * 255).round().astype(np.uint8), np.ones((scale, scale, 1), np.uint8))
    return _png_of(Image.fromarray(enlarged))


def histogram(shares: Mapping[str, npt.ArrayLike], names: Sequence[str]) -> bytes:
    """Return bars of how often each value occurs, side by side for several sources of pictures."""
    figure, axes = _plot(5.2, 2.6)
    width = 0.8 / len(shares)
    for number, (source, values) in enumerate(shares.items()):
        places = np.arange(len(names)) + (number - (len(shares) - 1) / 2) * width
        axes.bar(places, values, width, label=source, color=(GREY, *COLOURS)[number])
    axes.set_xticks(np.arange(len(names)), names, fontsize=8)
    if max(map(len, names)) > SHORT:
        axes.tick_params("x", rotation=30)
    axes.set_ylabel("share of the pictures", fontsize=9)
    axes.legend(fontsize=7, frameon=False, ncols=len(shares), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _drawn(figure)


def points(values: Mapping[str, npt.ArrayLike], name: str) -> bytes:
    """Return a column of points for each name, up to 1, and a line at their mean."""
    figure, axes = _plot(5.2, 2.6)
    for place, some in enumerate(map(np.asarray, values.values())):
        axes.plot(np.full(some.shape, place), some, "o", markersize=3.5, color=COLOURS[0])
        axes.hlines(some.mean(), place - 0.3, place + 0.3, color=GREY, zorder=0)
    axes.set_xticks(np.arange(len(values)), list(values), fontsize=8)
    axes.set_ylim(top=1.005)
    axes.set_ylabel(name, fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    return _drawn(figure)


def code_map(codes: FloatArray, labels: Labels, names: Sequence[str]) -> bytes:
    """Return codes ``(N, 2)`` as points, coloured by label ``(N,)``."""
    figure, axes = _plot(4.6, 4.2)
    for value, name in enumerate(names):
        chosen = codes[labels == value]
        axes.plot(chosen[:, 0], chosen[:, 1], ".", markersize=2.5, color=TEN[value % len(TEN)], label=name)
    axes.set_xlabel("first number of the code", fontsize=9)
    axes.set_ylabel("second number of the code", fontsize=9)
    axes.legend(fontsize=7, frameon=False, markerscale=4, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _drawn(figure)


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _drawn(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    return _png_of(Image.open(drawn).convert("RGB"))


def _png_of(image: Image.Image) -> bytes:
    small = io.BytesIO()
    image.quantize(64).save(small, format="png", optimize=True)
    return small.getvalue()
