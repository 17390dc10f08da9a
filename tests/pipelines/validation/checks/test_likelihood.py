from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly.core.errors import ConfigError
from pipelines.validation.checks.likelihood import check_likelihood
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_datasets import small_digits, under_test

pytestmark = pytest.mark.slow  # trains models


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_digits(tmp_path_factory.mktemp("dataset"))


class Uniform:
    """A flow that finds every grey level from 0 to 1 equally likely: 8 bits are needed for 256 levels."""

    family = "uniform"

    def negative_log_likelihood(self, images: Tensor, mask: Tensor) -> Tensor:
        return torch.zeros_like(images)


class Gaussian:
    """A flow that finds grey levels normal, of mean 0 and SD 1."""

    family = "gaussian"

    def negative_log_likelihood(self, images: Tensor, mask: Tensor) -> Tensor:
        return 0.5 * images**2 + 0.5 * math.log(2 * math.pi)


def test_bits_per_dimension_are_those_of_known_densities(dataset: Dataset, tmp_path: Path) -> None:
    flat = check_likelihood(under_test(dataset, Uniform(), tmp_path)).measures["bits_per_dimension"]
    assert flat == pytest.approx(math.log2(255))
    normal = check_likelihood(under_test(dataset, Gaussian(), tmp_path)).measures["bits_per_dimension"]
    mean_square = float((dataset.test.pixels[:250] ** 2).mean())
    expected = (0.5 * mean_square + 0.5 * math.log(2 * math.pi)) / math.log(2) + math.log2(255)
    assert normal == pytest.approx(expected, abs=1e-3)


class Weighing:
    """A variational model whose bound rises with the number of draws."""

    family = "weighing"

    def importance_bound(self, images: Tensor, mask: Tensor, k: int, rng: torch.Generator) -> Tensor:
        return images.flatten(1).sum(1) * 0 - 100 + math.log10(k)


def test_each_number_of_importance_samples_has_its_bound(dataset: Dataset, tmp_path: Path) -> None:
    found = check_likelihood(under_test(dataset, Weighing(), tmp_path))
    assert found.measures == pytest.approx(
        {"nll_1": 100, "nll_50": 100 - math.log10(50), "nll_500": 97.301}, abs=1e-3
    )
    assert "50 test images" in found.notes[0]


def test_a_model_without_a_likelihood_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    silent = type("Silent", (), {"family": "gan"})()
    with pytest.raises(ConfigError, match="remove the check likelihood"):
        check_likelihood(under_test(dataset, silent, tmp_path))
