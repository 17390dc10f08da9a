from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.core.errors import InputError
from anomaly.core.progress import no_progress
from pipelines.validation.sampling import BATCH_SIZE, Conditions, sample_conditions, sample_in_batches, sampler


class Echo:
    """A conditional model whose image is its condition."""

    family = "echo"
    is_conditional = True

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        assert covariates is not None
        assert len(covariates) == n
        return covariates[:, None, None, :]


def test_images_are_sampled_in_batches_and_clipped() -> None:
    sizes: list[int] = []

    def draw(n: int) -> Tensor:
        sizes.append(n)
        return torch.full((n, 1, 2, 3, 1), 1.5)

    images = sample_in_batches(draw, BATCH_SIZE + 1, no_progress, "sampling")
    assert sizes == [BATCH_SIZE, 1]
    assert images.shape == (BATCH_SIZE + 1, 2, 3)
    assert (images == 1).all()


def test_samples_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite; check the training"):
        sample_in_batches(lambda n: torch.full((n, 1, 2, 2), torch.nan), 3, no_progress, "sampling")


def test_each_condition_gives_its_image_also_across_batches() -> None:
    labels = np.arange(2 * (BATCH_SIZE + 3)).reshape(-1, 2) % 2
    images = sample_conditions(Echo(), labels, torch.Generator(), no_progress)
    assert (images[:, 0] == labels).all()


def test_a_conditional_model_is_sampled_under_conditions_of_the_source() -> None:
    draw = sampler(Echo(), Conditions(np.array([[0, 1], [1, -1]])), torch.Generator().manual_seed(0))
    rows = {tuple(np.nan_to_num(row, nan=-1)) for row in draw(50)[:, 0, 0].numpy()}
    assert rows == {(0, 1), (1, -1)}
