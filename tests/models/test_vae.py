from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli

from anomaly.core.errors import ConfigError, TrainingError
from anomaly.models.generation import Embedder, Generator
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import AugmentationSettings, TrainingSettings
from tests.models.factories import (
    MemoryCohort,
    binary_scan,
    healthy_cohort,
    healthy_scan,
    images_of,
    small_vae,
    step_info,
)


def test_the_negative_elbo_is_the_kl_minus_the_log_likelihood() -> None:
    detector = small_vae()
    images, mask = images_of(*healthy_scan(0), detector.view)
    evidence = detector.evidence(images, mask)
    likelihood = detector.log_likelihood(images, detector.reconstruct(images, mask), mask)
    torch.testing.assert_close(evidence.terms["negative_elbo"], evidence.terms["kl"] - likelihood)


def test_the_same_image_has_the_same_loss_with_the_same_generator() -> None:
    detector = small_vae()
    images, mask = images_of(*healthy_scan(0), detector.view)
    first, second = (detector.loss(images, mask, step_info(3))["loss"] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("view", [{"kind": "slice", "neighbours": 1}, {"kind": "volume"}])
def test_the_number_of_parameters_is_that_of_a_count_by_hand(view: dict[str, Any]) -> None:
    detector = small_vae(channels=(8, 16, 24), view=view)
    padded = (16, 24) if view["kind"] == "slice" else (16, 24, 16)
    kernel = 9 if view["kind"] == "slice" else 27
    normalised = [(detector.view.channels, 8), (8, 16), (16, 24), (24, 16), (16, 8)]  # four of them strided back
    convolutions = sum(kernel * a * b + b + 2 * b for a, b in normalised) + kernel * 8 * 1 + 1
    features = 24 * math.prod(n // 8 for n in padded)
    dense = 2 * (features * 6 + 6) + (6 * features + features)
    assert detector.n_parameters() == convolutions + dense


def test_samples_depend_only_on_the_random_generator() -> None:
    detector = small_vae(view={"kind": "slice", "neighbours": 1})
    assert isinstance(detector, Generator)
    assert isinstance(detector, Embedder)
    with torch.no_grad():
        first, again = (detector.sample(3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == (3, 1, *detector.image_shape)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("view", [{"kind": "patch", "size": (8, 8, 8)}, {"kind": "volume"}])
def test_patches_and_volumes_can_be_trained_on_and_scored(view: dict[str, Any], tmp_path: Path) -> None:
    detector = small_vae(
        view=view, kl_gradient=True, restoration_steps=2, context_encoding=0.5, restoration_rate=0.02
    )
    training = TrainingSettings(steps=2, batch_size=2, validate_every=2)
    fit(detector, healthy_cohort(3), [], FitRun(tmp_path, training, device="cpu"))
    images, mask = images_of(*healthy_scan(9), detector.view)
    with torch.inference_mode():
        maps = detector.evidence(images, mask).maps
    assert set(maps) == {"residual", "kl_gradient", "restoration"}
    assert all(m.shape == mask.shape for m in maps.values())


def test_active_units_are_in_the_report_of_a_training(tmp_path: Path) -> None:
    training = TrainingSettings(steps=2, validate_every=2)
    report = fit(small_vae(), healthy_cohort(3), [], FitRun(tmp_path, training, device="cpu"))
    assert 0 <= report.validation["active_units"] <= 6


def test_channels_that_are_not_multiples_of_8_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        small_vae(channels=(8, 12))


def test_a_bernoulli_model_returns_probabilities_and_their_elbo() -> None:
    detector = small_vae(likelihood="bernoulli", kl_gradient=True)
    images, mask = images_of(*binary_scan(0), detector.view)
    with torch.inference_mode():
        evidence, shown = detector.evidence(images, mask), detector.reconstruct(images, mask)
        samples = detector.sample(3, torch.Generator().manual_seed(0))
    assert all(((x > 0) & (x < 1)).all() for x in (shown, samples))
    torch.testing.assert_close(evidence.maps["residual"], torch.where(mask, images - shown, 0.0))
    likelihood = (Bernoulli(shown).log_prob(images) * mask).flatten(1).sum(1)
    torch.testing.assert_close(evidence.terms["negative_elbo"], evidence.terms["kl"] - likelihood)


@pytest.mark.slow
def test_a_bernoulli_model_learns_what_is_black_and_what_is_white(tmp_path: Path) -> None:
    detector = small_vae(likelihood="bernoulli")
    plain = AugmentationSettings(flip=0, deform=0, gamma=0, brightness=0, bias_field=0, noise=0, blur=0)
    training = TrainingSettings(
        steps=80, batch_size=16, learning_rate=1e-2, warmup=2, validate_every=80, augmentation=plain
    )
    cohort = MemoryCohort([binary_scan(seed) for seed in range(10)])
    fit(detector, cohort, [], FitRun(tmp_path, training, device="cpu"))
    images, mask = images_of(*binary_scan(300), detector.view)
    with torch.inference_mode():
        shown = detector.reconstruct(images, mask)
        likelihood = detector.log_likelihood(images, detector.output(detector.encode(images)[0]), mask)
    assert ((shown > 0.5) == (images > 0.5))[mask].float().mean() > 0.9
    assert -likelihood.sum() / mask.sum() < 0.5 * math.log(2)


def test_intensities_outside_0_to_1_are_refused(tmp_path: Path) -> None:
    bright = (2 * healthy_scan(1)[0], healthy_scan(1)[1])
    cohort = MemoryCohort([binary_scan(0), bright, binary_scan(2)])
    with pytest.raises(TrainingError, match=r"scan 2 of 3 has intensities .* Bernoulli likelihood expects 0 to 1"):
        fit(
            small_vae(likelihood="bernoulli"), cohort, [], FitRun(tmp_path, TrainingSettings(steps=1), device="cpu")
        )
