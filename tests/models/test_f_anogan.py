from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from anomaly.core.covariates import covariates
from anomaly.core.errors import TrainingError
from anomaly.core.volume import FloatArray
from anomaly.models.base import StepInfo
from anomaly.models.f_anogan import FAnoGAN, FAnoGANSettings, on_sphere
from anomaly.models.generation import Embedder, Generator, interpolate
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import (
    GRID,
    MemoryCohort,
    UnknownSubjects,
    WithKinds,
    healthy_cohort,
    healthy_scan,
    images_of,
    planted_scan,
    step_info,
    unknown_covariates,
)

OLD, YOUNG = torch.tensor([[29.0, 1.0]]), torch.tensor([[20.0, 0.0]])
TRAINING = TrainingSettings(steps=8, batch_size=8, learning_rate=5e-3, warmup=0, validate_every=4, ema_decay=0.0)


def new(kind: type[FAnoGAN] = FAnoGAN, **changes: object) -> FAnoGAN:
    values = {"channels": (8, 16), "latent_size": 6, "critic_steps": 2, "encoder_share": 0.5, **changes}
    return kind(FAnoGANSettings.parse(values, "model"), GRID)


def trained(detector: FAnoGAN, folder: Path, training: TrainingSettings = TRAINING) -> tuple[str, ...]:
    return fit(detector, healthy_cohort(4), [planted_scan()], FitRun(folder, training, device="cpu")).notes


def slices(detector: FAnoGAN, seed: int = 0) -> tuple[Tensor, Tensor]:
    return images_of(*healthy_scan(seed), detector.view)


def test_critic_and_generator_alternate_before_the_encoder_is_trained() -> None:
    phases = [new().phase(step, 12) for step in range(12)]
    assert phases == ["critic", "critic", "generator"] * 2 + ["encoder"] * 6


@pytest.mark.parametrize("objective", ["wgan-gp", "non-saturating", "minimax"])
@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize(("step", "name"), [(0, "critic"), (2, "generator"), (50, "encoder")])
def test_only_the_network_in_training_gets_a_gradient(
    objective: str, spectral_norm: bool, step: int, name: str
) -> None:
    detector = new(objective=objective, spectral_norm=spectral_norm, conditional=True)
    part = detector.trainable_part(step, 100)
    assert part is getattr(detector.network, name)
    detector.requires_grad_(False)
    part.requires_grad_()
    detector.loss(*slices(detector), step_info(step))["loss"].backward()
    trained = {id(parameter) for parameter in part.parameters()}
    for parameter in detector.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)


def test_validation_waits_until_the_encoder_has_been_trained_for_a_while() -> None:
    detector = new()
    assert not any(detector.ready_to_validate(step, 100) for step in range(60))
    assert all(detector.ready_to_validate(step, 100) for step in range(60, 101))
    assert detector.ready_to_validate(1, 1)


@pytest.mark.slow
def test_images_come_from_the_moving_average_of_the_generator(tmp_path: Path) -> None:
    detector = new()
    trained(detector, tmp_path)
    average, last = detector.network.ema_generator, detector.network.generator
    assert not torch.equal(average.linear.weight, last.linear.weight)
    z = detector.random_codes(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(detector.sample(2, torch.Generator().manual_seed(0)), average(z))


def test_the_loss_of_the_encoder_is_izi_f() -> None:
    detector = new(feature_weight=0.25)
    images, mask = slices(detector)
    unknown = unknown_covariates(len(images))
    with torch.no_grad():
        losses = detector.loss(images, mask, step_info(99))
        reconstruction = detector.network.forward_ema(detector.network.encode(images, unknown), unknown)
        error = ((images - reconstruction) ** 2).mean()
        features = [detector.network.critic.features(x) for x in (images, reconstruction)]
    torch.testing.assert_close(losses["loss"], error + 0.25 * ((features[0] - features[1]) ** 2).mean())


def test_the_evidence_is_one_pass_through_encoder_generator_and_critic() -> None:
    detector = new(view={"neighbours": 1})
    images, mask = slices(detector)
    with torch.inference_mode():
        evidence = detector.evidence(images, mask)
        reconstruction = detector.reconstruct(images, mask)
    torch.testing.assert_close(evidence.maps["residual"], torch.where(mask, images[:, 1:2] - reconstruction, 0.0))
    assert evidence.terms["critic_features"].shape == (len(images),)
    assert (evidence.terms["critic_features"] > 0).all()


def test_an_image_that_the_generator_reproduces_gives_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = new()
    images = detector.sample(3, torch.Generator().manual_seed(0)).detach()
    monkeypatch.setattr(
        detector.network, "encode", lambda x, c: detector.random_codes(3, torch.Generator().manual_seed(0))
    )
    with torch.inference_mode():
        evidence = detector.evidence(images, torch.ones_like(images, dtype=torch.bool))
    assert float(evidence.maps["residual"].abs().max()) < 1e-6
    assert float(evidence.terms["critic_features"].max()) < 1e-10


def test_codes_of_images_have_the_norm_of_the_codes_in_training() -> None:
    detector = new()
    images, mask = slices(detector)
    with torch.inference_mode():
        codes = detector.embed(1000 * images, mask)
    assert codes.shape == (len(images), 6)
    random_codes = detector.random_codes(len(images), torch.Generator().manual_seed(0))
    for lengths in (codes.norm(dim=1), random_codes.norm(dim=1)):
        torch.testing.assert_close(lengths, torch.full((len(images),), math.sqrt(6)))


def test_samples_depend_only_on_the_random_generator() -> None:
    detector = new()
    assert isinstance(detector, Generator)
    assert isinstance(detector, Embedder)
    first, same, other = (detector.sample(4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 1, 16, 20)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_latent_as_large_as_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lower model\.latent_size"):
        trained(new(latent_size=16 * 20), tmp_path)


@pytest.mark.slow
def test_3d_patches_can_be_trained_on(tmp_path: Path) -> None:
    detector = new(view={"kind": "patch", "size": (8, 8, 8)})
    trained(detector, tmp_path)
    assert detector.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8, 8)


@pytest.mark.slow
def test_all_networks_can_be_trained_in_bfloat16(tmp_path: Path) -> None:
    detector = new()
    before = {name: value.clone() for name, value in detector.network.named_parameters()}
    trained(detector, tmp_path, TRAINING.model_copy(update={"precision": "bf16"}))
    changed = {
        name.split(".")[0] for name, value in detector.network.named_parameters() if (value != before[name]).any()
    }
    assert changed == {"generator", "ema_generator", "critic", "encoder"}


class Collapsed(FAnoGAN):
    """A model whose generator always gets the same code."""

    def random_codes(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.zeros_like(super().random_codes(n, rng))


@pytest.mark.slow
def test_mode_collapse_is_reported_in_log_and_notes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        notes = trained(new(Collapsed), tmp_path)
    assert "mode collapse of the generator" in notes[0]
    assert "step 4: mode collapse of the generator" in caplog.messages[0]
    log = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    assert log["distinct"].dropna().tolist() == [0, 0]


@pytest.mark.slow
def test_no_mode_collapse_is_reported_for_varied_images(tmp_path: Path) -> None:
    notes = trained(new(), tmp_path)
    assert not any("mode collapse" in note for note in notes)


def conditional(folder: Path) -> FAnoGAN:
    detector = new(conditional=True)
    trained(detector, folder)
    return detector


@pytest.mark.slow
def test_all_networks_of_a_conditional_model_use_age_and_sex(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    images, mask = slices(detector)
    n = len(images)
    with torch.inference_mode():
        for output in (
            lambda covariates: detector.sample(n, torch.Generator().manual_seed(0), covariates),
            lambda covariates: detector.network.forward_critic(images, covariates),
            lambda covariates: detector.network.encode(images, covariates),
            lambda covariates: detector.evidence(images, mask, covariates).maps["residual"],
        ):
            old, young, unknown = (output(group.expand(n, -1)) for group in (OLD, YOUNG, unknown_covariates(1)))
            assert not torch.equal(old, young)
            assert not torch.equal(old, unknown)
            assert unknown.isfinite().all()


@pytest.mark.slow
def test_a_conditional_model_works_for_unknown_subjects(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    images, mask = slices(detector)
    with torch.inference_mode():
        evidence = detector.evidence(images, mask)
        explicit = detector.evidence(images, mask, unknown_covariates(len(images)))
        reconstruction = torch.where(mask, detector.reconstruct(images, mask), 0.0)
    assert torch.equal(evidence.maps["residual"], explicit.maps["residual"])
    torch.testing.assert_close(evidence.reconstruction, reconstruction)
    assert detector.sample(2, torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.slow
def test_ages_are_standardised_by_those_of_the_training_subjects(tmp_path: Path) -> None:
    conditioning = conditional(tmp_path).network.conditioning
    assert conditioning is not None
    assert float(conditioning.mean[0]) == pytest.approx(np.mean([20, 21, 22, 23]))


@dataclass(frozen=True, eq=False)
class Darkening(MemoryCohort):
    """Every second subject is old, and half as bright."""

    def covariates(self, index: int) -> FloatArray:
        return covariates(20.0 + 60 * (index % 2), "F")


@pytest.mark.slow
def test_a_conditional_generator_makes_images_of_the_given_age(tmp_path: Path) -> None:
    scans = [healthy_scan(n) for n in range(10)]
    cohort = Darkening([(voxels / (1 + n % 2), mask) for n, (voxels, mask) in enumerate(scans)])
    training = TRAINING.model_copy(update={"steps": 240, "batch_size": 16, "validate_every": 240})
    detector = new(conditional=True, critic_steps=1, encoder_share=0.2)
    fit(detector, cohort, [], FitRun(tmp_path, training, device="cpu"))
    with torch.no_grad():
        young, old = (
            detector.sample(32, torch.Generator().manual_seed(0), torch.tensor([[age, 0.0]]).expand(32, 2))
            for age in (20.0, 80.0)
        )
    brightness = [float(images[:, 0, 6:10, 7:13].mean()) for images in (young, old)]
    assert brightness[0] > 1.3 * brightness[1]


@pytest.mark.slow
@pytest.mark.parametrize("is_conditional", [True, False])
def test_other_covariates_than_age_and_sex_can_be_used(is_conditional: bool, tmp_path: Path) -> None:
    detector = new(conditional=is_conditional, covariates=[{"name": "kind", "values": 3}])
    cohort = WithKinds([healthy_scan(seed) for seed in range(4)])
    validation = [replace(planted_scan(), covariates=cohort.covariates(0))]
    fit(detector, cohort, validation, FitRun(tmp_path, TRAINING, device="cpu"))
    images, mask = slices(detector)
    with torch.inference_mode():
        first, second = (
            detector.evidence(images, mask, torch.full((len(images), 1), kind)).reconstruction
            for kind in (0.0, 1.0)
        )
    assert torch.equal(first, second) == (not is_conditional)


@pytest.mark.slow
def test_samples_without_covariates_are_those_of_unknown_subjects(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    assert detector.is_conditional
    with torch.inference_mode():
        first = detector.sample(4, torch.Generator().manual_seed(0))
        second = detector.sample(4, torch.Generator().manual_seed(0), unknown_covariates(4))
    assert torch.equal(first, second)


@pytest.mark.slow
def test_interpolation_includes_the_condition(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    first, second = (slices(detector, seed)[0][:4] for seed in (0, 1))
    young, old = YOUNG.expand(4, -1), OLD.expand(4, -1)
    network = detector.network
    with torch.inference_mode():
        steps = interpolate(detector, first, second, 3, (young, old))
        torch.testing.assert_close(steps[0], network.forward_ema(network.encode(first, young), young))
        torch.testing.assert_close(steps[2], network.forward_ema(network.encode(second, old), old))
        z = torch.lerp(network.encode(first, young), network.encode(second, old), 0.5)
        condition = torch.lerp(network.condition(young), network.condition(old), 0.5)
        torch.testing.assert_close(steps[1], network.forward_ema_condition(on_sphere(z), condition))
    assert not torch.equal(steps[1], steps[0])


def test_interpolation_of_an_unconditional_model_does_not_depend_on_covariates() -> None:
    detector = new()
    first, second = (slices(detector, seed)[0][:4] for seed in (0, 1))
    covariates_pair = OLD.expand(4, -1), YOUNG.expand(4, -1)
    with torch.inference_mode():
        torch.testing.assert_close(
            interpolate(detector, first, second, 3, covariates_pair), interpolate(detector, first, second, 3)
        )


def test_samples_of_an_unconditional_model_do_not_depend_on_covariates() -> None:
    detector = new()
    with torch.inference_mode():
        first = detector.sample(4, torch.Generator().manual_seed(0))
        second = detector.sample(4, torch.Generator().manual_seed(0), OLD.expand(4, -1))
    assert torch.equal(first, second)


def test_the_evidence_of_an_unconditional_model_does_not_depend_on_covariates() -> None:
    detector = new()
    images, mask = slices(detector)
    with torch.inference_mode():
        old, young = (
            detector.evidence(images, mask, group.expand(len(images), -1)).maps["residual"]
            for group in (OLD, YOUNG)
        )
    assert torch.equal(old, young)


def test_a_conditional_model_of_unknown_subjects_is_refused(tmp_path: Path) -> None:
    cohort = UnknownSubjects([healthy_scan(seed) for seed in range(3)])
    with pytest.raises(TrainingError, match=r"participants\.tsv"):
        fit(new(conditional=True), cohort, [], FitRun(tmp_path, TRAINING, device="cpu"))


def test_the_moving_average_of_the_generator_is_not_counted_as_trainable() -> None:
    detector = new()
    network = detector.network
    trainable = (network.generator, network.critic, network.encoder)
    assert detector.n_parameters() == sum(p.numel() for part in trainable for p in part.parameters())


def test_the_moving_average_is_updated_once_per_step_with_accumulated_batches() -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.no_grad():
        for parameter in detector.network.generator.parameters():
            parameter.add_(1.0)
    after = 1 + next(step for step in range(10) if detector.phase(step, 100) == "generator")
    step_info = StepInfo(after, 100, torch.Generator().manual_seed(0))
    before = [p.clone() for p in detector.network.ema_generator.parameters()]
    detector.loss(images[:2], mask[:2], step_info)
    once = [p.clone() for p in detector.network.ema_generator.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, once, strict=True))
    detector.loss(images[:2], mask[:2], step_info)
    assert all(torch.equal(a, b) for a, b in zip(once, detector.network.ema_generator.parameters(), strict=True))
    assert detector.last_ema_step == after
