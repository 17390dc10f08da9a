from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.models.components.gan_diagnostics import Objective, gan_diagnostics
from tests.models.factories import healthy_scan, unknown_covariates

pytestmark = pytest.mark.slow  # trains models


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(first: int) -> Iterator[Tensor]:
    """Yield batches of 16 slices, each of another healthy scan."""
    for seed in itertools.count(first, 16):
        slices = [healthy_scan(seed + n)[0][None, :, :, 3 + n % 6] for n in range(16)]
        yield torch.from_numpy(np.stack(slices))


def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for images in images_of(0):
        yield images, images != 0, unknown_covariates(len(images))


def critic_with_gap(value: float) -> object:
    """Return a critic whose outputs for two successive batches differ by ``value``."""
    outputs = itertools.cycle([value, 0.0])
    return lambda images, covariates: torch.full((len(images),), next(outputs))


def diagnose(generate: object, gap: float = 1.0, objective: Objective = "wgan-gp") -> tuple[dict[str, float], str]:
    found = gan_diagnostics(batches(), generate, critic_with_gap(gap), objective)  # type: ignore[arg-type]
    return dict(found.numbers), " ".join(found.warnings)


def varied_generator() -> object:
    """Return a generator of varied healthy images."""
    others = images_of(1000)
    return lambda covariates: next(others)


def test_a_generator_of_varied_healthy_images_gives_no_warning() -> None:
    numbers, warnings = diagnose(varied_generator())
    assert numbers["coverage"] > 0.8
    assert numbers["distinct"] > 0.8
    assert numbers["critic_gap"] == 1
    assert not warnings


def test_mode_collapse_gives_a_warning_with_a_remedy() -> None:
    one = next(images_of(1000))[:1]
    numbers, warnings = diagnose(lambda covariates: one.expand(len(covariates), -1, -1, -1))
    assert numbers["coverage"] < 0.1
    assert numbers["distinct"] == 0
    assert "mode collapse of the generator: coverage 0.0" in warnings
    assert "lower training.learning_rate" in warnings


def test_a_few_images_with_a_little_noise_are_mode_collapse() -> None:
    few, noise = next(images_of(1000))[:2], rng()

    def generate(covariates: Tensor) -> Tensor:
        images = few.repeat(len(covariates) // 2, 1, 1, 1)
        return images + 1e-3 * torch.randn(images.shape, generator=noise)

    assert "mode collapse" in diagnose(generate)[1]


def test_a_generator_of_noise_gives_another_warning_than_mode_collapse() -> None:
    noise = rng()
    _, warnings = diagnose(lambda covariates: torch.randn((len(covariates), 1, 16, 20), generator=noise))
    assert "does not yet make images like the real ones" in warnings
    assert "mode collapse" not in warnings


@pytest.mark.parametrize(("gap", "objective"), [(1e4, "wgan-gp"), (50.0, "minimax"), (math.nan, "non-saturating")])
def test_a_critic_that_has_diverged_gives_a_warning(gap: float, objective: Objective) -> None:
    assert "the critic has diverged" in diagnose(varied_generator(), gap, objective)[1]


def test_a_critic_without_a_gap_gives_a_warning_if_the_images_differ() -> None:
    noise = rng()
    _, warnings = diagnose(lambda covariates: torch.rand((len(covariates), 1, 16, 20), generator=noise), gap=0.0)
    assert "no longer distinguishes real from generated" in warnings
    assert not diagnose(varied_generator(), gap=0.0)[1]


def test_diagnostics_are_reproducible() -> None:
    assert diagnose(varied_generator()) == diagnose(varied_generator())
