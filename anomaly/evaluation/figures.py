"""Figures of an evaluation in print quality, with a palette for colour-blind readers (Okabe & Ito 2008)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anomaly.core.files import atomic_path
from anomaly.evaluation.detection import auroc, average_precision, precision_recall_curve, roc_curve

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
GREY = "#767676"

Scans = tuple[npt.ArrayLike, npt.ArrayLike]
"""Labels ``(n,)`` (True = lesion) and scores ``(n,)``."""


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """Observed against target false-positive rate (FPR); all fields except the last are ``(A,)``.

    Parameters
    ----------
    alphas
        Target FPRs.
    rates
        Observed FPRs on healthy test scans.
    band_low, band_high
        99 % band of the observed FPR if the target holds.
    target
        Target FPR of the calibration in use; drawn as a line.
    """

    alphas: npt.NDArray[np.float64]
    rates: npt.NDArray[np.float64]
    band_low: npt.NDArray[np.float64]
    band_high: npt.NDArray[np.float64]
    target: float | None = None


def roc_figure(curves: Mapping[str, Scans]) -> Figure:
    """Draw the ROC curve of each score or model, with its area in the legend."""
    figure, axes = _square("1 − specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for index, (name, scans) in enumerate(curves.items()):
        false, true = roc_curve(*scans)
        axes.step(false, true, where="post", label=f"{name}, AUROC {auroc(*scans):.2f}", **_line(index))
    return _with_legend(figure, axes, "lower right")


def precision_recall_figure(curves: Mapping[str, Scans]) -> Figure:
    """Draw the precision-recall curve of each score or model; the dotted line is the fraction of abnormal scans."""
    figure, axes = _square("recall (sensitivity)", "precision")
    for index, (name, scans) in enumerate(curves.items()):
        recall, precision = precision_recall_curve(*scans)
        label = f"{name}, AP {average_precision(*scans):.2f}"
        axes.step(recall, precision, where="pre", label=label, **_line(index))
        axes.axhline(float(np.mean(np.asarray(scans[0]))), color=GREY, linewidth=0.8, linestyle=":")
    return _with_legend(figure, axes, "lower left")


def calibration_figure(curve: CalibrationCurve) -> Figure:
    """Draw the observed false-positive rate against the target, with its 99 % band."""
    figure, axes = _square("target false-positive rate (alpha)", "observed false-positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="target")
    axes.fill_between(
        curve.alphas, curve.band_low, curve.band_high,
        step="post", color=COLOURS[0], alpha=0.15, linewidth=0, label="99 % band",
    )  # fmt: skip
    axes.step(curve.alphas, curve.rates, where="post", color=COLOURS[0], label="observed on healthy test scans")
    if curve.target is not None:
        axes.axvline(curve.target, color=COLOURS[1], linewidth=1, linestyle="--", label="alpha in use")
    axes.set_xlim(0, float(curve.alphas.max()) * 1.05)
    axes.set_ylim(0, float(max(curve.band_high.max(), curve.rates.max())) * 1.05)
    axes.set_aspect("auto")
    return _with_legend(figure, axes, "upper left")


def save(figure: Figure, path: Path) -> None:
    """Write a figure at 300 dots per inch; the suffix of the path sets the format."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=300, bbox_inches="tight")


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    return figure, axes


def _line(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)], "linewidth": 1.5}


def _with_legend(
    figure: Figure, axes: Axes, location: Literal["lower right", "lower left", "upper left"]
) -> Figure:
    axes.legend(fontsize=7, framealpha=0.8, edgecolor="none", loc=location)
    return figure
