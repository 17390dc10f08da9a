from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.baselines.naive_bayes_models import PixelModel
from pipelines.validation.checks.avatars.pixel_dependence import check_pixel_dependence
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    under_test,
)


def test_pixels_of_avatars_are_dependent_and_those_of_naive_bayes_are_not(dataset: Dataset, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels"), dataset.train.grid)
    fit(model, dataset.train, (), FitRun(tmp_path))
    found = check_pixel_dependence(under_test(dataset, model, tmp_path))
    assert found.measures["neighbour_correlation"] == pytest.approx(1, abs=1e-6)
    assert found.measures["neighbour_correlation_generated"] == pytest.approx(0, abs=0.05)
    assert found.measures["entropy_of_model"] > 20 * found.measures["entropy_of_distribution"]
    assert "correlated by 1.00" in found.notes[0]
