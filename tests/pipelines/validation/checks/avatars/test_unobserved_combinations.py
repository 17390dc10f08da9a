from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.validation.baselines.naive_bayes_models import FeatureModel
from pipelines.validation.checks.avatars.unobserved_combinations import check_unobserved_combinations
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    under_test,
)


def test_ten_new_combinations_are_unobserved_and_have_their_probability(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.avatars is not None
    found = check_unobserved_combinations(
        under_test(dataset, FeatureModel(NaiveBayesSettings(of="features"), dataset.avatars), tmp_path)
    )
    assert found.measures["unobserved_fraction"] == found.measures["distinct_fraction"] == 1
    (rows,) = found.tables.values()
    assert len(rows) == 10
    before = {distribution.visible(combination) for combination in dataset.avatars.observed}
    for row in rows:
        probability = row.pop("probability")
        combination = distribution.Attributes(**row)
        assert distribution.visible(combination) not in before
        assert probability == pytest.approx(distribution.probabilities([combination], distribution.theta())[0])
