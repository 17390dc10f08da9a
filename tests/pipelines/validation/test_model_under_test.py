from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.errors import ConfigError
from pipelines.validation.labelled_dataset import NOT_VISIBLE
from pipelines.validation.model_under_test import Dataset, ModelUnderTest
from pipelines.validation.settings import ValidationSettings
from tests.pipelines.validation.small_avatars import (
    NAIVE_BAYES,
    Noise,
    avatar_task,
    small_dataset,
    under_test,
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return small_dataset()


@pytest.mark.slow
def test_novel_test_images_equal_no_training_image(dataset: Dataset, tmp_path: Path) -> None:
    model = under_test(dataset, Noise(), tmp_path)
    known = {tuple(row) for row in dataset.train.labels}
    found = [tuple(row) for row in model.novel_test_images.labels]
    assert 0 < len(found) < len(dataset.test)
    assert not known & set(found)
    assert sum(tuple(row) not in known for row in dataset.test.labels) == len(found)


def test_naive_bayes_is_not_trained(dataset: Dataset, tmp_path: Path) -> None:
    settings = ValidationSettings.parse(avatar_task(naive=NAIVE_BAYES), "here")
    entry = settings.models["naive"]
    model = ModelUnderTest(dataset, entry, settings, tmp_path)
    with pytest.raises(ConfigError, match="no model family"):
        _ = model.family_entry
    assert model.detector.family == entry.family


def test_a_training_under_other_settings_is_removed(dataset: Dataset, tmp_path: Path) -> None:
    earlier = tmp_path / "training" / "earlier"
    earlier.mkdir(parents=True)
    entry = {"model": {"family": "pca", "components": 2}, "checks": ["generation"],
             "thresholds": {"generation.frechet": {"max": 1}}}  # fmt: skip
    settings = ValidationSettings.parse(avatar_task(components=entry), "here")
    model = ModelUnderTest(dataset, settings.models["components"], settings, tmp_path)
    assert model.detector.family == "pca"
    assert not earlier.exists()


def test_the_label_of_an_attribute_that_is_not_visible_does_not_lower_the_confidence(dataset: Dataset) -> None:
    bald = dataset.test.labels[:, 1] == NOT_VISIBLE
    found = dataset.classify(dataset.test.pixels[bald])
    assert (found.labels[:, 1] == NOT_VISIBLE).all()
    assert (found.confidence > 0.9).all()
