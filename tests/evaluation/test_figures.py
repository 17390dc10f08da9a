from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from anomaly.evaluation.figures import (
    CalibrationCurve,
    calibration_figure,
    precision_recall_figure,
    roc_figure,
    save,
)

SCANS = ([False, True, False, True], [1.0, 2.0, 3.0, 4.0])


def test_the_roc_figure_names_each_curve_with_its_area() -> None:
    figure = roc_figure({"dae": SCANS, "atlas": SCANS})
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "dae, AUROC 0.75",
        "atlas, AUROC 0.75",
    ]
    assert figure.axes[0].get_xlabel() == "1 − specificity"


def test_curves_differ_in_colour_and_in_dashes() -> None:
    lines = roc_figure({"dae": SCANS, "atlas": SCANS}).axes[0].get_lines()[1:]
    assert lines[0].get_color() != lines[1].get_color()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_the_precision_recall_figure_gives_the_average_precision() -> None:
    figure = precision_recall_figure({"dae": SCANS})
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "dae, AP 0.83"


def test_figures_are_written_at_print_resolution(tmp_path: Path) -> None:
    alphas = np.arange(1, 11) / 20
    curve = CalibrationCurve(alphas, alphas, alphas * 0.5, alphas * 1.5, target=0.05)
    save(calibration_figure(curve), tmp_path / "calibration.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "calibration.png").shape
    assert min(height, width) > 800
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.png"]


@pytest.mark.parametrize("target", [None, 0.1])
def test_the_calibration_figure_shows_the_band_and_the_alpha_in_use(target: float | None) -> None:
    alphas = np.array([0.1, 0.2])
    axes = calibration_figure(CalibrationCurve(alphas, alphas, alphas, alphas, target)).axes[0]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "99 % band" in names
    assert ("alpha in use" in names) == (target is not None)
