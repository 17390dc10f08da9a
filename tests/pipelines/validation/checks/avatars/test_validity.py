from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import ConfigError
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
from pipelines.validation.checks.avatars.validity import assess_validity
from pipelines.validation.labelled_dataset import NOT_VISIBLE
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    under_test,
)


def test_the_attributes_of_avatars_are_read_correctly(dataset: Dataset) -> None:
    found = assess_validity(dataset, dataset.test.pixels)
    assert (found.codes == dataset.test.labels).all()
    assert found.valid.all()
    assert found.mse.max() == 0


def test_a_bald_avatar_has_no_hair_colour(dataset: Dataset) -> None:
    bald = dataset.test.labels[:, 1] == NOT_VISIBLE
    assert bald.any()
    assert (assess_validity(dataset, dataset.test.pixels[bald]).codes[:, 1] == NOT_VISIBLE).all()


def test_an_image_unlike_the_rendering_of_its_attributes_is_not_valid(dataset: Dataset) -> None:
    pixels = dataset.test.pixels[:5].copy()
    assert assess_validity(dataset, pixels * 0.9 + 0.02).valid.sum() < 5
    reading = dataset.classify(pixels)
    assert (reading.confidence > 0.9).all()
    far = np.where(np.arange(pixels.shape[2]) < 4, 1 - pixels, pixels).astype(np.float32)
    assert not assess_validity(dataset, far).valid.any()


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
