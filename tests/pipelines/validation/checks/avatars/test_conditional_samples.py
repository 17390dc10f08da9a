from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.validation.checks.avatars.conditional_samples import (
    check_conditional_samples,
    conditions_with_hair,
    with_one_changed,
)
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.labelled_dataset import NOT_VISIBLE
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    Tailor,
    under_test,
)


def test_a_model_that_follows_its_condition_changes_one_attribute_only(dataset: Dataset, tmp_path: Path) -> None:
    found = check_conditional_samples(under_test(dataset, Tailor(dataset), tmp_path)).measures
    assert found["condition_accuracy_lowest"] == found["condition_accuracy_all"] == found["valid"] == 1
    assert found["single_change_lowest"] == 1
    assert found["off_target_change"] == 0


@pytest.mark.parametrize("ignored", [0, 2, 4])
def test_a_model_that_ignores_an_attribute_is_detected(dataset: Dataset, ignored: int, tmp_path: Path) -> None:
    found = check_conditional_samples(under_test(dataset, Tailor(dataset, ignored=ignored), tmp_path)).measures
    name = distribution.Attributes._fields[ignored]
    assert found["condition_accuracy_lowest"] < 0.6
    assert found["single_change_lowest"] == found[f"single_change_{name}"] < 0.6


def test_a_model_that_changes_the_clothes_with_the_accessory_is_detected(dataset: Dataset, tmp_path: Path) -> None:
    found = check_conditional_samples(under_test(dataset, Tailor(dataset, follows=(2, 3)), tmp_path)).measures
    assert found["others_unchanged_accessories_type"] == 0
    assert found["single_change_accessories_type"] == 0
    assert found["others_unchanged_hair_color"] == 1
    assert found["off_target_change"] > 0.05


def test_a_changed_condition_differs_in_one_possible_value(dataset: Dataset) -> None:
    assert dataset.avatars is not None
    before = conditions_with_hair(dataset.avatars, 300)
    assert (before != NOT_VISIBLE).all()
    for feature, theta in enumerate(distribution.theta()):
        after = with_one_changed(before, feature, np.random.default_rng(0))
        assert (after[:, feature] != before[:, feature]).all()
        assert (theta[after[:, feature]] > 0).all()
        others = np.delete((after == before) | (after == NOT_VISIBLE), feature, axis=1)
        assert others.all()
