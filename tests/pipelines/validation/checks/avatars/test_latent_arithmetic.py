from __future__ import annotations

from pathlib import Path

from pipelines.validation.checks.avatars.latent_arithmetic import check_latent_arithmetic
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    Forgetful,
    Pixels,
    under_test,
)


def test_exact_codes_can_be_added_and_subtracted(dataset: Dataset, tmp_path: Path) -> None:
    found = check_latent_arithmetic(under_test(dataset, Pixels(), tmp_path)).measures
    assert found["added"] == found["removed"] == 1
    assert found["success_lowest"] > 0.3  # the mean difference also holds what comes with sunglasses by chance


def test_codes_without_information_cannot_be_added(dataset: Dataset, tmp_path: Path) -> None:
    found = check_latent_arithmetic(under_test(dataset, Forgetful(), tmp_path)).measures
    assert found["success"] < 0.2
