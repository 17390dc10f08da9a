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

from anomaly.core.covariates import UNKNOWN_COVARIATES, covariates
from anomaly.core.errors import TrainingError
from anomaly.core.volume import FloatArray
from anomaly.models.base import ConditionalGenerator, Embedder, Generator, StepInfo, interpolated
from anomaly.models.f_anogan import GANSettings, GenerativeAdversarial, beside, on_sphere
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import (
    GRID,
    MemoryCohort,
    healthy_cohort,
    healthy_scan,
    images_of,
    planted_scan,
    strangers,
)

OLD_MAN, YOUNG_WOMAN = torch.tensor([[29.0, 1.0]]), torch.tensor([[20.0, 0.0]])
TRAINING = TrainingSettings(steps=8, batch_size=8, learning_rate=5e-3, warmup=0, validate_every=4, ema_decay=0.0)


def new(kind: type[GenerativeAdversarial] = GenerativeAdversarial, **changes: object) -> GenerativeAdversarial:
    values = {"channels": (8, 16), "latent_size": 6, "critic_steps": 2, "encoder_share": 0.5, **changes}
    return kind(GANSettings.parse(values, "model"), GRID)


def moment(step: int, steps: int = 100, covariates: Tensor | None = None) -> StepInfo:
    return StepInfo(step, steps, torch.Generator().manual_seed(0), covariates)


def trained(
    detector: GenerativeAdversarial, folder: Path, training: TrainingSettings = TRAINING
) -> tuple[str, ...]:
    return fit(detector, healthy_cohort(4), [planted_scan()], FitRun(folder, training, device="cpu")).notes


def slices(detector: GenerativeAdversarial, seed: int = 0) -> tuple[Tensor, Tensor]:
    return images_of(*healthy_scan(seed), detector.view)


def test_critic_and_generator_take_turns_then_the_encoder_learns() -> None:
    turns = [new().turn(step, 12) for step in range(12)]
    assert turns == ["critic", "critic", "generator"] * 2 + ["encoder"] * 6


@pytest.mark.parametrize("objective", ["wgan-gp", "non-saturating", "minimax"])
@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize(("step", "player"), [(0, "critic"), (2, "generator"), (50, "encoder")])
def test_only_the_player_whose_turn_it_is_gets_a_gradient(
    objective: str, spectral_norm: bool, step: int, player: str
) -> None:
    detector = new(objective=objective, spectral_norm=spectral_norm, conditional=True)
    part = detector.trainable_part(step, 100)
    assert part is getattr(detector.network, player)
    detector.requires_grad_(False)
    part.requires_grad_()
    detector.loss(*slices(detector), moment(step))["loss"].backward()
    learnt = {id(parameter) for parameter in part.parameters()}
    for parameter in detector.parameters():
        assert (parameter.grad is not None) == (id(parameter) in learnt)


def test_the_encoder_can_be_validated_once_it_has_learnt_a_little() -> None:
    detector = new()
    assert not any(detector.ready_to_validate(step, 100) for step in range(60))
    assert all(detector.ready_to_validate(step, 100) for step in range(60, 101))
    assert detector.ready_to_validate(1, 1)


def test_a_running_mean_of_the_generator_makes_the_images(tmp_path: Path) -> None:
    detector = new()
    trained(detector, tmp_path)
    mean, last = detector.network.steady, detector.network.generator
    assert not torch.equal(mean.linear.weight, last.linear.weight)
    z = detector.codes(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(detector.sample(2, torch.Generator().manual_seed(0)), mean(z))


def test_the_encoder_learns_izi_f() -> None:
    detector = new(feature_weight=0.25)
    images, mask = slices(detector)
    nothing = strangers(len(images))
    with torch.no_grad():
        losses = detector.loss(images, mask, moment(99))
        rebuilt = detector.network.generate(detector.network.encode(images, nothing), nothing)
        error = ((images - rebuilt) ** 2).mean()
        seen = [detector.network.critic.features(x) for x in (images, rebuilt)]
    torch.testing.assert_close(losses["loss"], error + 0.25 * ((seen[0] - seen[1]) ** 2).mean())


def test_the_evidence_is_one_pass_through_encoder_generator_and_critic() -> None:
    detector = new(view={"neighbours": 1})
    images, mask = slices(detector)
    with torch.inference_mode():
        evidence = detector.evidence(images, mask)
        rebuilt = detector.reconstruct(images, mask)
    torch.testing.assert_close(evidence.maps["residual"], torch.where(mask, images[:, 1:2] - rebuilt, 0.0))
    assert evidence.terms["critic_features"].shape == (len(images),)
    assert (evidence.terms["critic_features"] > 0).all()


def test_an_image_that_the_generator_makes_again_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = new()
    images = detector.sample(3, torch.Generator().manual_seed(0)).detach()
    monkeypatch.setattr(
        detector.network, "encode", lambda x, c: detector.codes(3, torch.Generator().manual_seed(0))
    )
    with torch.inference_mode():
        evidence = detector.evidence(images, torch.ones_like(images, dtype=torch.bool))
    assert float(evidence.maps["residual"].abs().max()) < 1e-6
    assert float(evidence.terms["critic_features"].max()) < 1e-10


def test_codes_of_images_are_of_the_length_of_those_the_generator_has_been_given() -> None:
    detector = new()
    images, mask = slices(detector)
    with torch.inference_mode():
        codes = detector.embed(1000 * images, mask)
    assert codes.shape == (len(images), 6)
    given = detector.codes(len(images), torch.Generator().manual_seed(0))
    for lengths in (codes.norm(dim=1), given.norm(dim=1)):
        torch.testing.assert_close(lengths, torch.full((len(images),), math.sqrt(6)))


def test_samples_come_from_the_generator_of_random_numbers_alone() -> None:
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


def test_patches_are_learnt_in_3d(tmp_path: Path) -> None:
    detector = new(view={"kind": "patch", "size": (8, 8, 8)})
    trained(detector, tmp_path)
    assert detector.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8, 8)


def test_all_players_learn_also_in_bfloat16(tmp_path: Path) -> None:
    detector = new()
    before = {name: value.clone() for name, value in detector.network.named_parameters()}
    trained(detector, tmp_path, TRAINING.model_copy(update={"precision": "bf16"}))
    moved = {
        name.split(".")[0] for name, value in detector.network.named_parameters() if (value != before[name]).any()
    }
    assert moved == {"generator", "steady", "critic", "encoder"}


class Collapsed(GenerativeAdversarial):
    """Its generator is given the same code again and again."""

    def codes(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.zeros_like(super().codes(n, rng))


def test_a_generator_that_has_collapsed_is_told_of_in_log_and_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        notes = trained(new(Collapsed), tmp_path)
    assert "the generator repeats itself" in notes[0]
    assert "step 4: the generator repeats itself" in caplog.messages[0]
    log = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    assert log["distinct"].dropna().tolist() == [0, 0]


def test_a_generator_that_has_not_collapsed_is_not_said_to_have(tmp_path: Path) -> None:
    notes = trained(new(), tmp_path)
    assert not any("repeats itself" in note for note in notes)


def conditional(folder: Path) -> GenerativeAdversarial:
    detector = new(conditional=True)
    trained(detector, folder)
    return detector


def test_a_conditional_model_is_told_age_and_sex_in_all_it_does(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    images, mask = slices(detector)
    n = len(images)
    with torch.inference_mode():
        for answers in (
            lambda about: detector.sample_given(about, torch.Generator().manual_seed(0)),
            lambda about: detector.network.judge(images, about),
            lambda about: detector.network.encode(images, about),
            lambda about: detector.evidence_given(images, mask, about).maps["residual"],
        ):
            old, young, nobody = (answers(about.expand(n, -1)) for about in (OLD_MAN, YOUNG_WOMAN, strangers(1)))
            assert not torch.equal(old, young)
            assert not torch.equal(old, nobody)
            assert nobody.isfinite().all()


def test_where_nothing_is_known_a_conditional_model_answers_all_the_same(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    images, mask = slices(detector)
    with torch.inference_mode():
        evidence = detector.evidence(images, mask)
        given = detector.evidence_given(images, mask, strangers(len(images)))
        shown = torch.where(mask, detector.reconstruct(images, mask), 0.0)
    assert torch.equal(evidence.maps["residual"], given.maps["residual"])
    torch.testing.assert_close(evidence.reconstruction, shown)
    assert detector.sample(2, torch.Generator().manual_seed(0)).isfinite().all()


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
def test_a_conditional_generator_makes_images_of_the_age_it_is_told(tmp_path: Path) -> None:
    scans = [healthy_scan(n) for n in range(10)]
    cohort = Darkening([(voxels / (1 + n % 2), mask) for n, (voxels, mask) in enumerate(scans)])
    training = TRAINING.model_copy(update={"steps": 240, "batch_size": 16, "validate_every": 240})
    detector = new(conditional=True, critic_steps=1, encoder_share=0.2)
    fit(detector, cohort, [], FitRun(tmp_path, training, device="cpu"))
    with torch.no_grad():
        young, old = (
            detector.sample_given(torch.tensor([[age, 0.0]]).expand(32, 2), torch.Generator().manual_seed(0))
            for age in (20.0, 80.0)
        )
    brightness = [float(images[:, 0, 6:10, 7:13].mean()) for images in (young, old)]
    assert brightness[0] > 1.3 * brightness[1]


@dataclass(frozen=True, eq=False)
class OfKinds(MemoryCohort):
    """Of every subject the kind is known, one of three."""

    def covariates(self, index: int) -> FloatArray:
        return np.array([index % 3], dtype=np.float32)


@pytest.mark.parametrize("told", [True, False])
def test_subjects_may_be_of_kinds_instead_of_an_age_and_a_sex(told: bool, tmp_path: Path) -> None:
    detector = new(conditional=told, covariates=[{"name": "kind", "values": 3}])
    cohort = OfKinds([healthy_scan(seed) for seed in range(4)])
    validation = [replace(planted_scan(), covariates=cohort.covariates(0))]
    fit(detector, cohort, validation, FitRun(tmp_path, TRAINING, device="cpu"))
    images, mask = slices(detector)
    with torch.inference_mode():
        first, second = (
            detector.evidence_given(images, mask, torch.full((len(images), 1), kind)).reconstruction
            for kind in (0.0, 1.0)
        )
    assert torch.equal(first, second) == (not told)


def test_new_images_of_unknown_subjects_are_those_of_whom_nothing_is_told(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    assert isinstance(detector, ConditionalGenerator)
    with torch.inference_mode():
        first = detector.sample(4, torch.Generator().manual_seed(0))
        second = detector.sample_given(strangers(4), torch.Generator().manual_seed(0))
    assert torch.equal(first, second)


def test_between_two_images_lies_also_what_is_told_of_them(tmp_path: Path) -> None:
    detector = conditional(tmp_path)
    first, second = (slices(detector, seed)[0][:4] for seed in (0, 1))
    young, old = YOUNG_WOMAN.expand(4, -1), OLD_MAN.expand(4, -1)
    players = detector.network
    with torch.inference_mode():
        way = interpolated(detector, first, second, 3, (young, old))
        torch.testing.assert_close(way[0], players.generate(players.encode(first, young), young))
        torch.testing.assert_close(way[2], players.generate(players.encode(second, old), old))
        z = torch.lerp(players.encode(first, young), players.encode(second, old), 0.5)
        told = torch.lerp(players.told(young), players.told(old), 0.5)
        torch.testing.assert_close(way[1], players.steady(beside(on_sphere(z), told)))
    assert not torch.equal(way[1], way[0])


def test_what_an_unconditional_model_makes_between_two_images_does_not_depend_on_what_it_is_given() -> None:
    detector = new()
    first, second = (slices(detector, seed)[0][:4] for seed in (0, 1))
    about = OLD_MAN.expand(4, -1), YOUNG_WOMAN.expand(4, -1)
    with torch.inference_mode():
        torch.testing.assert_close(
            interpolated(detector, first, second, 3, about), interpolated(detector, first, second, 3)
        )


def test_an_unconditional_model_makes_images_like_any_other_whatever_it_is_given() -> None:
    detector = new()
    with torch.inference_mode():
        first = detector.sample(4, torch.Generator().manual_seed(0))
        second = detector.sample_given(OLD_MAN.expand(4, -1), torch.Generator().manual_seed(0))
    assert torch.equal(first, second)


def test_an_unconditional_model_does_not_look_at_them() -> None:
    detector = new()
    images, mask = slices(detector)
    with torch.inference_mode():
        old, young = (
            detector.evidence_given(images, mask, about.expand(len(images), -1)).maps["residual"]
            for about in (OLD_MAN, YOUNG_WOMAN)
        )
    assert torch.equal(old, young)


@dataclass(frozen=True, eq=False)
class Nameless(MemoryCohort):
    """Nothing is known of its subjects."""

    def covariates(self, index: int) -> FloatArray:
        return UNKNOWN_COVARIATES


def test_a_conditional_model_of_subjects_of_whom_nothing_is_known_is_refused(tmp_path: Path) -> None:
    cohort = Nameless([healthy_scan(seed) for seed in range(3)])
    with pytest.raises(TrainingError, match=r"participants\.tsv"):
        fit(new(conditional=True), cohort, [], FitRun(tmp_path, TRAINING, device="cpu"))


def test_the_running_mean_of_the_generator_is_not_trained() -> None:
    detector = new()
    players = detector.network
    trainable_part = (players.generator, players.critic, players.encoder)
    assert detector.n_parameters() == sum(p.numel() for part in trainable_part for p in part.parameters())


def test_the_running_mean_moves_once_a_step_however_many_batches_it_adds_up() -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.no_grad():
        for parameter in detector.network.generator.parameters():
            parameter.add_(1.0)
    after = 1 + next(step for step in range(10) if detector.turn(step, 100) == "generator")
    at = StepInfo(after, 100, torch.Generator().manual_seed(0))
    before = [p.clone() for p in detector.network.steady.parameters()]
    detector.loss(images[:2], mask[:2], at)
    once = [p.clone() for p in detector.network.steady.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, once, strict=True))
    detector.loss(images[:2], mask[:2], at)
    assert all(torch.equal(a, b) for a, b in zip(once, detector.network.steady.parameters(), strict=True))
    assert detector.followed == after
