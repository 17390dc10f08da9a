from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from anomaly.core.errors import ConfigError
from anomaly.models.base import target_slice
from anomaly.models.components.variational import DiagonalGaussian, kl
from anomaly.models.generation import interpolate
from anomaly.models.vae import VariationalAutoencoder, VariationalSettings
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import (
    GRID,
    binary_scan,
    healthy_cohort,
    healthy_scan,
    images_of,
    planted_scan,
    small_vae,
    step_info,
)


class Linear(VariationalAutoencoder):
    """x = Wz + s·noise with orthogonal columns: its posterior and its evidence are known in closed form."""

    def __init__(self, widen: float = 1.0, **changes: Any) -> None:
        settings = VariationalSettings.parse({"channels": (8,), "latent_size": 3, **changes}, "model")
        super().__init__(settings, GRID)
        voxels = math.prod(self.image_shape)
        columns = torch.linalg.qr(torch.randn(voxels, 3, generator=torch.Generator().manual_seed(0)))[0]
        self.weights, self.widen = columns * torch.tensor([3.0, 2.0, 1.0]), widen

    def encode(self, images: Tensor, condition: Tensor | None = None) -> DiagonalGaussian:
        variance = 1 / (1 + (self.weights**2).sum(0) / self.settings.noise_sd**2)
        mu = variance * (images.flatten(1) @ self.weights) / self.settings.noise_sd**2
        return DiagonalGaussian(mu, (self.widen * variance).log().expand_as(mu))

    def output(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return (z @ self.weights.T).reshape(-1, 1, *self.image_shape)

    def images(self, n: int = 5) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(1)
        images = self.sample(n, rng)
        images = images + self.settings.noise_sd * torch.randn(images.shape, generator=rng)
        return images, torch.ones_like(images, dtype=torch.bool)

    def log_evidence(self, images: Tensor) -> Tensor:
        covariance = self.weights @ self.weights.T + self.settings.noise_sd**2 * torch.eye(len(self.weights))
        images = images.flatten(1).double()
        return MultivariateNormal(torch.zeros_like(images[0]), covariance.double()).log_prob(images).float()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> VariationalAutoencoder:
    detector = small_vae(latent_size=8)
    training = TrainingSettings(steps=120, batch_size=16, learning_rate=5e-3, warmup=2, validate_every=120)
    fit(detector, healthy_cohort(), [], FitRun(tmp_path_factory.mktemp("vae"), training, device="cpu"))
    return detector


def test_the_log_likelihood_is_that_of_torch_inside_the_mask() -> None:
    detector = small_vae(noise_sd=0.2)
    images, mask = images_of(*healthy_scan(0), detector.view)
    reconstruction = torch.zeros_like(images)
    expected = (Normal(reconstruction, 0.2).log_prob(images) * mask).flatten(1).sum(1)
    torch.testing.assert_close(detector.log_likelihood(images, reconstruction, mask), expected)


def test_beta_rises_over_the_warm_up() -> None:
    detector = small_vae(beta=2.0, beta_warmup=0.5)
    images, mask = images_of(*healthy_scan(0), detector.view)

    def beta(step: int) -> float:
        with torch.no_grad():
            losses = detector.loss(images, mask, step_info(step))
        return float((losses["loss"] + losses["likelihood"]) / losses["kl"])

    assert abs(beta(0) - 2.0 / 50) < 1e-2
    assert abs(beta(49) - 2.0) < 1e-2
    assert abs(beta(99) - 2.0) < 1e-2


def test_the_kl_gradient_is_the_slope_of_the_kl_even_under_inference_mode() -> None:
    detector = small_vae()
    images, _ = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        slope = detector.kl_gradient(images[5:6])[0, 0, 8, 10]
    step = torch.zeros_like(images[5:6])
    step[0, 0, 8, 10] = 1e-2
    with torch.no_grad():
        ahead, behind = (kl(*detector.encode(images[5:6] + sign * step))[0] for sign in (1, -1))
    torch.testing.assert_close(slope, ((ahead - behind) / 2e-2).abs(), rtol=0.05, atol=1e-4)


def test_free_bits_set_a_lower_bound_on_the_kl() -> None:
    plain, free = small_vae(beta_warmup=0.0), small_vae(beta_warmup=0.0, free_bits=50.0)
    images, mask = images_of(*healthy_scan(0), plain.view)
    first, second = (detector.loss(images, mask, step_info(0)) for detector in (plain, free))
    assert torch.equal(first["kl"], second["kl"])  # what is logged is the KL as it is
    floor = 50.0 * 6 * len(images) / mask.sum()
    torch.testing.assert_close(second["loss"] + second["likelihood"], floor)
    torch.testing.assert_close(first["loss"] + first["likelihood"], first["kl"])


def test_context_encoding_hides_boxes_in_training_and_not_in_scoring() -> None:
    detector = small_vae(context_encoding=1.0)
    images, mask = images_of(*healthy_scan(0), detector.view)
    shown, hidden = detector.corrupt(images, mask, torch.Generator().manual_seed(0))
    assert hidden.all()
    losses = detector.loss(images, mask, step_info(0), shown, hidden)
    with torch.no_grad():
        rebuilt = detector.log_likelihood(images, detector.reconstruct(shown, mask), mask).sum() / mask.sum()
    torch.testing.assert_close(losses["loss"], -rebuilt)  # neither noise nor KL
    torch.testing.assert_close(
        detector.evidence(images, mask).reconstruction, detector.reconstruct(images, mask) * mask
    )
    assert small_vae().corrupt(images, mask, torch.Generator()) == ()


def test_the_bound_with_one_sample_is_an_estimate_of_the_elbo() -> None:
    detector = small_vae()
    images, mask = images_of(*healthy_scan(0), detector.view)
    bound = detector.importance_bound(images, mask, 1, torch.Generator().manual_seed(4))
    mu, log_variance = detector.encode(images)
    sd = (0.5 * log_variance).exp()
    z = mu + sd * torch.randn(mu.shape, generator=torch.Generator().manual_seed(4))
    latent = (Normal(0.0, 1.0).log_prob(z) - Normal(mu, sd).log_prob(z)).sum(1)
    torch.testing.assert_close(bound, detector.log_likelihood(images, detector.decode(z), mask) + latent)


def test_the_importance_bound_is_the_evidence_where_the_posterior_is_exact() -> None:
    toy = Linear()
    images, mask = toy.images()
    bound = toy.importance_bound(images, mask, 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(bound, toy.log_evidence(images), rtol=1e-3, atol=0.05)


@pytest.mark.slow
def test_the_importance_bound_rises_to_the_evidence_with_the_number_of_samples() -> None:
    toy = Linear(widen=4.0)
    images, mask = toy.images()
    evidence, rng = toy.log_evidence(images), torch.Generator().manual_seed(0)
    gaps = [
        float(torch.stack([evidence - toy.importance_bound(images, mask, k, rng) for _ in range(600 // k)]).mean())
        for k in (1, 5, 300)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > -0.05
    assert gaps[2] < 0.1


def test_each_restoration_step_lowers_the_objective() -> None:
    toy = Linear(noise_sd=0.2)
    images, mask = toy.images()
    images[:, :, 4:8, 6:10] -= 0.5
    objectives = []
    for steps in range(8):
        detector = Linear(noise_sd=0.2, restoration_steps=steps, restoration_rate=0.01)
        objectives.append(detector.restoration_objective(detector.restore(images, mask), images, mask))
    steps_down = torch.stack(objectives).diff(dim=0)
    assert (steps_down < 0).all()


@pytest.mark.slow
def test_a_dark_lesion_is_restored_brighter(trained: VariationalAutoencoder) -> None:
    detector = small_vae(latent_size=8, restoration_steps=20)
    detector.load_state_dict(trained.state_dict())
    scan = planted_scan(200)
    images, mask = images_of(scan.voxels, scan.mask, detector.view)
    lesion = images_of(scan.lesion.astype("float32"), scan.mask, detector.view)[0] > 0
    with torch.inference_mode():
        restoration = detector.evidence(images, mask).maps["restoration"]
        alone = detector.evidence(images[5:6], mask[5:6]).maps["restoration"]
    torch.testing.assert_close(restoration[5:6], alone, rtol=1e-4, atol=1e-5)
    assert restoration[lesion].mean() < -0.1
    assert restoration[mask & ~lesion].abs().mean() < 0.5 * restoration[lesion].abs().mean()


@pytest.mark.slow
def test_the_total_variation_penalty_keeps_the_restoration_near_the_scan(trained: VariationalAutoencoder) -> None:
    images, mask = images_of(planted_scan(200).voxels, planted_scan(200).mask, trained.view)
    moved = []
    for weight in (0.0, 2.0, 20.0):
        detector = small_vae(latent_size=8, restoration_steps=20, restoration_rate=0.02, restoration_tv=weight)
        detector.load_state_dict(trained.state_dict())
        moved.append(float((detector.restore(images, mask) - images).abs().sum()))
    assert moved[0] > moved[1] > moved[2]


def test_restoration_steps_that_overshoot_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"restoration_rate 0\.05 overshoots.*lower it to 0\.03 or less"):
        small_vae(restoration_steps=10, restoration_tv=20.0)


@pytest.mark.slow
def test_imputation_restores_missing_voxels(trained: VariationalAutoencoder) -> None:
    images, mask = images_of(*healthy_scan(300), trained.view)
    missing = torch.zeros_like(mask)
    missing[:, :, 6:11, 8:13] = True
    hole = missing & mask
    with torch.inference_mode():
        once, often = (trained.impute(images, missing, mask, steps) for steps in (0, 20))
        other = trained.impute(images + hole * 5.0, missing, mask, 20)

    def error(filled: Tensor) -> float:
        return float((filled - images)[hole].abs().mean())

    assert error(often) < error(once)
    assert error(often) < 0.5 * float(images[hole].abs().mean())
    assert torch.equal(often[~hole], images[~hole])
    assert torch.equal(often[hole], other[hole])  # what lies under the hole is not looked at


def test_codes_of_two_images_can_be_interpolated(trained: VariationalAutoencoder) -> None:
    first, mask = images_of(*healthy_scan(0), trained.view)
    first, second = first[:4], first[4:8]
    with torch.no_grad():
        way = interpolate(trained, first, second, 5)
        torch.testing.assert_close(way[0], trained.reconstruct(first, mask[:4]))
        torch.testing.assert_close(way[4], trained.reconstruct(second, mask[4:8]))
        half = torch.lerp(trained.embed(first, mask[:4]), trained.embed(second, mask[4:8]), 0.5)
        torch.testing.assert_close(way[2], trained.decode(half))


def test_neighbouring_slices_are_imputed_and_restored_in_the_middle() -> None:
    detector = small_vae(view={"kind": "slice", "neighbours": 1}, restoration_steps=2)
    images, mask = images_of(*healthy_scan(0), detector.view)
    missing = torch.zeros_like(mask)
    missing[:, :, 6:11, 8:13] = True
    with torch.inference_mode():
        filled = detector.impute(images, missing, mask)
        assert detector.evidence(images, mask).maps["restoration"].shape == mask.shape
    assert torch.equal(filled[~missing], target_slice(images)[~missing])


def test_a_unit_is_active_if_its_mean_varies_with_the_image() -> None:
    toy = Linear()
    batches = [images_of(*healthy_scan(seed), toy.view)[0] for seed in range(4)]
    expected = toy.encode(torch.cat(batches))[0].var(0, correction=0) > 0.01
    assert torch.equal(toy.active_units(batches), expected)
    toy.weights[:, 1] *= 1e-3
    assert toy.active_units(batches).tolist()[1] is False


def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for seed in itertools.count():
        images, mask = images_of(*healthy_scan(seed), VariationalSettings().view)
        yield images, mask, torch.full((len(images), 2), torch.nan)


def test_active_units_give_no_warning(trained: VariationalAutoencoder) -> None:
    diagnostics = trained.diagnostics(batches())
    assert 1 <= diagnostics.numbers["active_units"] <= 8
    assert diagnostics.warnings == ()


def test_posterior_collapse_gives_a_warning_with_a_remedy() -> None:
    toy = Linear()
    toy.weights *= 1e-3
    diagnostics = toy.diagnostics(batches())
    assert diagnostics.numbers == {"active_units": 0.0}
    assert diagnostics.warnings[0].startswith("the posterior has collapsed: 0 of 3 latent units")
    assert "model.free_bits" in diagnostics.warnings[0]


def test_a_bernoulli_model_has_an_importance_bound() -> None:
    detector = small_vae(likelihood="bernoulli")
    images, mask = images_of(*binary_scan(0), detector.view)
    bounds = [detector.importance_bound(images, mask, k, torch.Generator().manual_seed(0)) for k in (1, 100)]
    assert (bounds[1] < 0).all()
    assert bounds[1].mean() > bounds[0].mean()


def test_restoration_with_a_bernoulli_likelihood_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs likelihood gaussian"):
        small_vae(likelihood="bernoulli", restoration_steps=2)
