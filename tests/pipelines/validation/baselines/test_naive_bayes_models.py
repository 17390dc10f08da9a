from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from anomaly.core.errors import ConfigError
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.baselines.naive_bayes_models import PixelModel, fit_naive_bayes
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    small_dataset,
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return small_dataset()


def test_impossible_colours_have_a_high_negative_log_likelihood(dataset: Dataset, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels", alpha=0.01), dataset.train.grid)
    fit(model, dataset.train, (), FitRun(tmp_path))
    images = torch.from_numpy(dataset.test.pixels[:3])[:, None].clone()
    images[1, :, 0:4] = 1.0
    evidence = model.evidence(images, torch.ones_like(images, dtype=torch.bool))
    negative_log_likelihood = evidence.maps["nll"]
    assert negative_log_likelihood.shape == images.shape
    assert negative_log_likelihood[1].sum() > negative_log_likelihood[0].sum() + 50
    assert (negative_log_likelihood[:, :, 1::2, 1::2] == 0).all()
    assert evidence.reconstruction.shape == images.shape


def test_naive_bayes_of_images_that_are_no_avatars_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="naive_bayes is for avatars"):
        fit_naive_bayes(NaiveBayesSettings(of="pixels"), dataset.train, None)


@pytest.mark.parametrize("of", ["features", "pixels"])
def test_samples_repeat_with_the_seed(of: Literal["features", "pixels"], dataset: Dataset) -> None:
    model = fit_naive_bayes(NaiveBayesSettings(of=of), dataset.train, dataset.avatars)
    first, again, other = (model.sample(20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (20, 1, *dataset.train.pixels.shape[1:])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
