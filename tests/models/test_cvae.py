from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly.core.errors import TrainingError
from anomaly.core.volume import FloatArray
from anomaly.models.base import StepInfo
from anomaly.models.cvae import ConditionalSettings, ConditionalVariationalAutoencoder
from anomaly.models.generation import interpolate
from anomaly.models.vae import VariationalAutoencoder, VariationalSettings
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import AugmentationSettings, TrainingSettings
from tests.models.factories import (
    GRID,
    MemoryCohort,
    UnknownSubjects,
    WithKinds,
    healthy_cohort,
    healthy_scan,
    images_of,
    planted_scan,
    unknown_covariates,
)

YOUNG, OLD = torch.tensor([[20.0, math.nan]]), torch.tensor([[39.0, math.nan]])


def new(**changes: Any) -> ConditionalVariationalAutoencoder:
    settings = ConditionalSettings.parse({"channels": (8, 16), "latent_size": 6, **changes}, "model")
    return ConditionalVariationalAutoencoder(settings, GRID)


def of_age(years: float, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return a scan whose brightness falls with age."""
    voxels, mask = healthy_scan(seed)
    return voxels * (1.2 - 0.03 * (years - 20)), mask


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ConditionalVariationalAutoencoder:
    detector = new(latent_size=2, beta=4.0)
    cohort = MemoryCohort([of_age(20 + index, index) for index in range(20)])
    plain = AugmentationSettings(flip=0, deform=0, gamma=0, brightness=0, bias_field=0, noise=0, blur=0)
    training = TrainingSettings(
        steps=100, batch_size=8, learning_rate=5e-3, warmup=2, validate_every=100, augmentation=plain
    )
    fit(detector, cohort, [], FitRun(tmp_path_factory.mktemp("cvae"), training, device="cpu"))
    return detector


@torch.inference_mode()
def error(detector: ConditionalVariationalAutoencoder, years: float, reported: Tensor) -> float:
    images, mask = images_of(*of_age(years, 300), detector.view)
    evidence = detector.evidence(images, mask, reported.expand(len(images), -1))
    assert all(term.isfinite().all() for term in evidence.terms.values())
    return float(evidence.maps["residual"][mask].abs().mean())


@pytest.mark.slow
def test_a_scan_is_rebuilt_best_for_its_own_age(trained: ConditionalVariationalAutoencoder) -> None:
    for right, wrong in ((YOUNG, OLD), (OLD, YOUNG)):
        years = float(right[0, 0])
        assert error(trained, years, right) < 0.7 * error(trained, years, wrong)


def test_an_unknown_age_gives_finite_evidence_between_the_right_and_the_wrong_age(
    trained: ConditionalVariationalAutoencoder,
) -> None:
    assert error(trained, 20, YOUNG) < error(trained, 20, unknown_covariates(1)) < error(trained, 20, OLD)


def test_evidence_without_covariates_is_that_of_unknown_subjects(
    trained: ConditionalVariationalAutoencoder,
) -> None:
    images, mask = images_of(*healthy_scan(0), trained.view)
    with torch.inference_mode():
        first = trained.evidence(images, mask).maps["residual"]
        second = trained.evidence(images, mask, unknown_covariates(len(images))).maps["residual"]
    assert torch.equal(first, second)


def test_each_subject_has_covariates_of_its_own(trained: ConditionalVariationalAutoencoder) -> None:
    images, mask = images_of(*healthy_scan(0), trained.view)
    images, mask, reported = images[5:6], mask[5:6], torch.cat([YOUNG, OLD])
    with torch.inference_mode():
        both = trained.evidence(images.expand(2, -1, -1, -1), mask.expand(2, -1, -1, -1), reported)
        alone = trained.evidence(images, mask, OLD)
    torch.testing.assert_close(both.reconstruction[1:], alone.reconstruction)
    assert both.reconstruction[0].mean() > both.reconstruction[1].mean()


def test_the_maps_of_the_settings_are_given_age_and_sex_too() -> None:
    detector = new(kl_gradient=True, restoration_steps=2)
    detector.prepare(healthy_cohort())
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        young, old = (detector.evidence(images, mask, a.expand(len(images), -1)) for a in (YOUNG, OLD))
    assert all(not torch.equal(young.maps[name], old.maps[name]) for name in young.maps)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_covariates_are_dropped_at_random_in_training(drop: float) -> None:
    detector = new(condition_dropout=drop)
    detector.prepare(healthy_cohort())
    images, mask = images_of(*healthy_scan(0), detector.view)
    losses = [
        detector.loss(images, mask, StepInfo(0, 10, torch.Generator().manual_seed(0), a.expand(len(images), -1)))
        for a in (YOUNG, OLD)
    ]
    assert torch.equal(losses[0]["loss"], losses[1]["loss"]) == (drop == 1.0)


def test_a_batch_of_which_nothing_is_known_is_one_of_unknown_subjects() -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    losses = [
        detector.loss(images, mask, StepInfo(0, 10, torch.Generator().manual_seed(0), known))["loss"]
        for known in (None, unknown_covariates(len(images)))
    ]
    assert torch.equal(*losses)


def test_the_dense_layers_alone_have_more_parameters_than_without_covariates() -> None:
    detector = new()
    features = 16 * math.prod(n // 4 for n in detector.padded)
    convolutions = 9 * (1 * 8 + 8 * 16 + 16 * 8 + 8 * 1) + 3 * (8 + 16 + 8) + 1
    dense = 2 * ((features + 4) * 6 + 6) + (6 + 4 + 1) * features
    assert detector.n_parameters() == convolutions + dense


def test_samples_have_the_given_age(trained: ConditionalVariationalAutoencoder) -> None:
    with torch.no_grad():
        young, old = (
            trained.sample(8, torch.Generator().manual_seed(0), group.expand(8, -1)) for group in (YOUNG, OLD)
        )
    assert young.mean() > old.mean()


def test_samples_without_covariates_are_those_of_unknown_subjects(
    trained: ConditionalVariationalAutoencoder,
) -> None:
    assert trained.is_conditional
    assert not VariationalAutoencoder(VariationalSettings(), GRID).is_conditional
    with torch.no_grad():
        first = trained.sample(4, torch.Generator().manual_seed(0))
        second = trained.sample(4, torch.Generator().manual_seed(0), unknown_covariates(4))
    assert torch.equal(first, second)


def test_a_code_can_be_decoded_with_other_covariates(trained: ConditionalVariationalAutoencoder) -> None:
    images, mask = images_of(*of_age(20, 300), trained.view)
    with torch.no_grad():
        young, old = (trained.conditioning(group.expand(len(images), -1)) for group in (YOUNG, OLD))
        z, _ = trained.encode(images, young)
        aged = trained.decode(z, old)
        assert aged[mask].mean() < trained.decode(z, young)[mask].mean()


def test_interpolation_includes_the_condition(trained: ConditionalVariationalAutoencoder) -> None:
    first, second = (images_of(*of_age(years, 300), trained.view)[0][:4] for years in (20, 39))
    pair = YOUNG.expand(4, -1), OLD.expand(4, -1)
    with torch.no_grad():
        steps = interpolate(trained, first, second, 3, pair)
        conditions = [trained.conditioning(covariates) for covariates in pair]
        codes = [trained.encode(*pair)[0] for pair in zip((first, second), conditions, strict=True)]
        torch.testing.assert_close(steps[0], trained.decode(codes[0], conditions[0]))
        torch.testing.assert_close(steps[2], trained.decode(codes[1], conditions[1]))
        torch.testing.assert_close(steps[1], trained.decode(sum(codes) / 2, sum(conditions) / 2))
        unconditional = interpolate(trained, first, second, 3)
    assert (steps[0] - first).abs().mean() < (unconditional[0] - first).abs().mean()


def test_a_cohort_of_unknown_subjects_is_refused(tmp_path: Path) -> None:
    cohort = UnknownSubjects([healthy_scan(seed) for seed in range(3)])
    with pytest.raises(TrainingError, match="found neither age nor sex"):
        fit(new(), cohort, [], FitRun(tmp_path, TrainingSettings(steps=1), device="cpu"))


def test_other_covariates_than_age_and_sex_can_be_used(tmp_path: Path) -> None:
    detector = new(covariates=[{"name": "kind", "values": 3}])
    cohort = WithKinds([healthy_scan(seed) for seed in range(6)])
    validation = [replace(planted_scan(), covariates=cohort.covariates(0))]
    fit(detector, cohort, validation, FitRun(tmp_path, TrainingSettings(steps=2, validate_every=2), device="cpu"))
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        first, second, nothing = (
            detector.evidence(images, mask, torch.full((len(images), 1), kind)).reconstruction
            for kind in (0.0, 1.0, math.nan)
        )
        assert torch.equal(nothing, detector.evidence(images, mask).reconstruction)
    assert not torch.equal(first, second)
    assert not torch.equal(first, nothing)


def test_other_covariates_than_those_of_the_volumes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"conditioned on kind \(one of 0 to 2\), but the volumes have 2 number"
    ):
        fit(
            new(covariates=[{"name": "kind", "values": 3}]),
            healthy_cohort(),
            [],
            FitRun(tmp_path, TrainingSettings(steps=1), device="cpu"),
        )


def test_a_bernoulli_model_returns_probabilities_for_all_covariates() -> None:
    detector = new(likelihood="bernoulli")
    detector.prepare(healthy_cohort())
    images, mask = images_of(*healthy_scan(0), detector.view)
    losses = detector.loss(
        images, mask, StepInfo(0, 10, torch.Generator().manual_seed(0), unknown_covariates(len(images)))
    )
    assert losses["loss"] > 0
    with torch.no_grad():
        for values in (
            detector.sample(3, torch.Generator().manual_seed(0), YOUNG.expand(3, -1)),
            detector.evidence(images, mask, OLD.expand(len(images), -1)).reconstruction[mask],
        ):
            assert ((values > 0) & (values < 1)).all()
