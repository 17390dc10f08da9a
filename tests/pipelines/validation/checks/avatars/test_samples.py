from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.errors import ConfigError
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.baselines.naive_bayes_models import FeatureModel, PixelModel
from pipelines.validation.checks.avatars.samples import check_samples
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    Drawing,
    Noise,
    Tailor,
    sampled_labels,
    under_test,
)

pytestmark = pytest.mark.slow  # trains models


def test_a_generator_that_samples_the_distribution_follows_both_rules(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(under_test(dataset, Drawing(dataset, sampled_labels(dataset)), tmp_path)).measures
    assert found["valid"] == 1
    assert found["chi_square_p"] > 0.01
    assert found["total_variation"] < 0.08
    assert found["impossible_values"] == 0
    assert found["novel"] == pytest.approx(found["novel_expected"], abs=0.06)
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.2)
    assert found["distinct_ratio"] == pytest.approx(1, abs=0.1)
    assert found["attribute_difference_ratio"] == pytest.approx(1, abs=0.05)


def test_a_generator_that_returns_the_observed_avatars_produces_nothing_new(
    dataset: Dataset, tmp_path: Path
) -> None:
    assert dataset.avatars is not None
    fifty = distribution.codes(dataset.avatars.observed)
    found = check_samples(under_test(dataset, Drawing(dataset, fifty), tmp_path)).measures
    assert found["valid"] == 1
    assert found["total_variation"] < 0.1
    assert found["novel"] == 0
    assert found["distinct"] < 0.2


def test_a_generator_that_returns_training_images_produces_nothing_unseen(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(under_test(dataset, Drawing(dataset, dataset.train.labels), tmp_path)).measures
    assert found["unseen"] == 0
    assert found["novel"] > 0.5


def test_a_generator_that_samples_all_values_equally_often_violates_the_distribution(
    dataset: Dataset, tmp_path: Path
) -> None:
    found = check_samples(
        under_test(dataset, Drawing(dataset, dataset.avatars.images("test", 900, 1e6).labels), tmp_path)
    )  # type: ignore[union-attr]
    assert found.measures["chi_square_p"] == pytest.approx(5e-4, rel=1)
    assert found.measures["total_variation"] > 0.2
    assert found.measures["impossible_values"] > 0.1
    table = found.tables["Frequency of each value"]
    assert len(table) == sum(len(values) for values in distribution.VALUES)
    assert table[1] == {"attribute": "top_type", "value": "LongHairBun", "distribution": 0.0,
                        "samples": pytest.approx(1 / 7, abs=0.06)}  # fmt: skip


def test_noise_is_not_valid_and_not_compared_with_the_distribution(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(under_test(dataset, Noise(), tmp_path))
    assert found.measures["valid"] == 0
    assert "novel" not in found.measures
    assert "cannot be compared with the distribution" in found.notes[1]


def test_a_conditional_model_gets_conditions_from_the_distribution(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(under_test(dataset, Tailor(dataset), tmp_path)).measures
    assert found["valid"] == 1
    assert found["total_variation"] < 0.08
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.2)
    assert found["distinct_ratio"] == pytest.approx(1, abs=0.1)


def test_naive_bayes_of_features_follows_both_rules(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.avatars is not None
    model = FeatureModel(NaiveBayesSettings(of="features"), dataset.avatars)
    found = check_samples(under_test(dataset, model, tmp_path)).measures
    assert found["valid"] == 1
    assert found["chi_square_p"] > 0.01
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.25)


def test_naive_bayes_of_pixels_samples_no_valid_avatar(dataset: Dataset, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels"), dataset.train.grid)
    fit(model, dataset.train, (), FitRun(tmp_path))
    found = check_samples(under_test(dataset, model, tmp_path)).measures
    assert found["valid"] < 0.05


def test_other_datasets_have_no_avatars(dataset: Dataset, tmp_path: Path) -> None:
    elsewhere = Dataset(dataset.train, dataset.test, "digits", {"digit": ("0", "1")}, dataset.classifier)
    with pytest.raises(ConfigError, match="avatars"):
        check_samples(under_test(elsewhere, Drawing(dataset, sampled_labels(dataset)), tmp_path))
