from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.core.errors import ConfigError
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.baselines.naive_bayes_models import PixelModel
from pipelines.validation.checks.avatars.conditional_samples import (
    check_conditional_samples,
)
from pipelines.validation.checks.avatars.latent_arithmetic import check_latent_arithmetic
from pipelines.validation.checks.avatars.out_of_distribution import (
    check_out_of_distribution,
)
from pipelines.validation.checks.avatars.pixel_dependence import check_pixel_dependence
from pipelines.validation.checks.avatars.samples import check_samples
from pipelines.validation.checks.avatars.unobserved_combinations import check_unobserved_combinations
from pipelines.validation.checks.generation import check_generation
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    Drawing,
    Noise,
    sampled_labels,
    small_dataset,
    under_test,
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return small_dataset()


def test_novel_test_images_equal_no_training_image(dataset: Dataset, tmp_path: Path) -> None:
    model = under_test(dataset, Noise(), tmp_path)
    known = {tuple(row) for row in dataset.train.labels}
    found = [tuple(row) for row in model.novel_test_images.labels]
    assert 0 < len(found) < len(dataset.test)
    assert not known & set(found)
    assert sum(tuple(row) not in known for row in dataset.test.labels) == len(found)


def test_the_generation_check_runs_on_avatars(dataset: Dataset, tmp_path: Path) -> None:
    found = check_generation(under_test(dataset, Drawing(dataset, sampled_labels(dataset)), tmp_path)).measures
    assert found["confident_fraction"] == 1
    assert found["class_total_variation"] < 0.1


def test_impossible_colours_have_a_high_negative_log_likelihood(dataset: Dataset, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels", alpha=0.01), dataset.train.grid)
    fit(model, dataset.train, (), FitRun(tmp_path))
    images = torch.from_numpy(dataset.test.pixels[:3])[:, None].clone()
    images[1, :, 0:4] = 1.0
    evidence = model.evidence(images, torch.ones_like(images, dtype=torch.bool))
    negative_log_likelihood = evidence.maps["surprise"]
    assert negative_log_likelihood.shape == images.shape
    assert negative_log_likelihood[1].sum() > negative_log_likelihood[0].sum() + 50
    assert (negative_log_likelihood[:, :, 1::2, 1::2] == 0).all()
    assert evidence.reconstruction.shape == images.shape


@pytest.mark.parametrize(
    "check",
    [
        check_samples,
        check_conditional_samples,
        check_latent_arithmetic,
        check_out_of_distribution,
        check_unobserved_combinations,
        check_pixel_dependence,
    ],
)
def test_an_error_names_the_check_to_remove(check: object, dataset: Dataset, tmp_path: Path) -> None:
    class Nothing:
        family = "nothing"

    with pytest.raises(ConfigError, match=r"'nothing' .*; remove the check"):
        check(under_test(dataset, Nothing(), tmp_path))  # type: ignore[operator]


def test_attributes_that_an_image_does_not_show_are_unknown_covariates(dataset: Dataset) -> None:
    images = LabelledImages(dataset.train.pixels[:1], np.array([[0, NOT_VISIBLE, 1, 2, 3]]))
    as_covariates = images.covariates(0)
    assert np.isnan(as_covariates).tolist() == [False, True, False, False, False]
    assert as_covariates[2:].tolist() == [1, 2, 3]
