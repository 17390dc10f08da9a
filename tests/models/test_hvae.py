from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from anomaly.core.errors import ConfigError, TrainingError
from anomaly.core.volume import Geometry
from anomaly.models.base import StepInfo
from anomaly.models.generation import Embedder, Generator
from anomaly.models.hvae import (
    HierarchicalSettings,
    HierarchicalVariationalAutoencoder,
    kl_per_voxel,
    level_distributions,
    posterior_mean,
)
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of

SMALL = {"channels": (8, 16), "latents": (6, 2, 1)}


def new(**changes: Any) -> HierarchicalVariationalAutoencoder:
    return HierarchicalVariationalAutoencoder(HierarchicalSettings.parse({**SMALL, **changes}, "model"), GRID)


def with_random_weights(**changes: Any) -> HierarchicalVariationalAutoencoder:
    """Return a detector whose posteriors differ from the priors, as after training."""
    detector, rng = new(**changes), torch.Generator().manual_seed(0)
    for parameter in detector.parameters():
        nn.init.normal_(parameter, std=0.2, generator=rng)
    return detector


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_kl_of_a_level_equals_that_of_torch() -> None:
    prior, change = random(3, 4, 5, 6), random(3, 4, 5, 6, seed=1)
    level = level_distributions(prior, change)
    below = Normal(prior[:, :2], (0.5 * prior[:, 2:]).exp())
    above = Normal(prior[:, :2] + change[:, :2], (0.5 * (prior[:, 2:] + change[:, 2:])).exp())
    torch.testing.assert_close(level.kl(), kl_divergence(above, below))


def test_a_posterior_equal_to_the_prior_has_a_kl_of_zero() -> None:
    assert level_distributions(random(3, 4, 5, 6), torch.zeros(3, 4, 5, 6)).kl().abs().max() == 0


@pytest.mark.parametrize("cells", [(4, 3), (4, 3, 2), ()])
def test_the_kl_per_voxel_sums_to_the_kl_of_the_cells(cells: tuple[int, ...]) -> None:
    divergence = random(5, 2, *cells).abs()
    shape = tuple(8 * n for n in cells or (2, 3))
    voxels = kl_per_voxel(divergence, shape)
    assert voxels.shape == (5, 1, *shape)
    torch.testing.assert_close(voxels.flatten(1).sum(1), divergence.flatten(1).sum(1))


def test_the_kl_of_a_cell_lies_on_its_voxels() -> None:
    divergence = torch.zeros(1, 1, 4, 4)
    divergence[0, 0, 1, 2] = 1.0
    voxels = kl_per_voxel(divergence, (32, 32))[0, 0]
    assert voxels[8:16, 16:24].sum() > 0.5
    assert voxels[20:].sum() == 0


@pytest.mark.parametrize("view", [{"kind": "slice", "neighbours": 1}, {"kind": "volume"}])
def test_the_kl_maps_of_the_levels_sum_to_the_total_kl(view: dict[str, Any]) -> None:
    detector = with_random_weights(view=view)
    images, mask = images_of(*healthy_scan(0), detector.view)
    everywhere = torch.ones_like(mask)
    with torch.inference_mode():
        evidence = detector.evidence(images, everywhere)
    maps = [evidence.maps[name] for name in ("kl_1", "kl_2", "kl_3")]
    assert set(evidence.maps) == {"residual", "kl_1", "kl_2", "kl_3"}
    torch.testing.assert_close(sum(m.flatten(1).sum(1) for m in maps), evidence.terms["kl"])
    assert all((m >= 0).all() and m.max() > 0 for m in maps)
    assert (maps[0].flatten(1).amax(1) == maps[0].flatten(1).amin(1)).all()  # of the whole image


def test_the_negative_elbo_is_the_kl_minus_the_log_likelihood() -> None:
    detector = with_random_weights(noise_sd=0.2, residual_levels=3)
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        evidence, reconstruction = detector.evidence(images, mask), detector.reconstruct(images, mask)
    likelihood = (Normal(reconstruction, 0.2).log_prob(images) * mask).flatten(1).sum(1)
    torch.testing.assert_close(evidence.terms["negative_elbo"], evidence.terms["kl"] - likelihood)


def test_the_reconstruction_takes_finer_levels_from_their_priors() -> None:
    images, mask = images_of(*healthy_scan(0), new().view)
    reconstructions = [with_random_weights(residual_levels=k).reconstruct(images, mask) for k in (1, 2, 3)]
    detector = with_random_weights()
    change, _ = detector.encode(images)
    torch.testing.assert_close(reconstructions[0], detector.decode_top_down(change, [], posterior_mean)[0])
    whole, _ = detector.decode_top_down(*detector.encode(images), posterior_mean)
    torch.testing.assert_close(reconstructions[2], whole)
    assert not torch.equal(reconstructions[0], reconstructions[1])
    assert not torch.equal(reconstructions[1], reconstructions[2])


def test_the_kl_maps_do_not_depend_on_residual_levels() -> None:
    images, mask = images_of(*healthy_scan(0), new().view)
    first, second = (with_random_weights(residual_levels=k).evidence(images, mask) for k in (1, 3))
    assert all(torch.equal(first.maps[name], second.maps[name]) for name in ("kl_1", "kl_2", "kl_3"))
    assert all(torch.equal(first.terms[name], second.terms[name]) for name in ("kl", "negative_elbo"))


def test_before_training_every_level_is_at_its_prior() -> None:
    detector = new()
    images, _ = images_of(*healthy_scan(0), detector.view)
    _, levels = detector.decode_top_down(*detector.encode(images), posterior_mean)
    assert [tuple(level.mu.shape[1:]) for level in levels] == [(6,), (2, 4, 5), (1, 8, 10)]
    assert all(level.kl().abs().max() == 0 for level in levels)


def test_the_prior_of_a_finer_level_depends_on_the_coarser_levels() -> None:
    network, no_change = with_random_weights().network, torch.zeros(1, 12)
    priors = []
    for start in (0.0, 1.0):
        _, levels = network.decode_top_down(no_change, [], lambda mu, log_variance, start=start: mu + start)
        priors.append([level.prior_mu for level in levels])
    assert torch.equal(priors[0][0], priors[1][0])
    assert not torch.equal(priors[0][1], priors[1][1])
    assert not torch.equal(priors[0][2], priors[1][2])


def test_samples_depend_only_on_the_random_generator() -> None:
    detector = with_random_weights()
    assert isinstance(detector, Generator)
    assert isinstance(detector, Embedder)
    with torch.no_grad():
        first, again = (detector.sample(3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == (3, 1, *detector.image_shape)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_the_embedding_is_the_mean_of_the_first_level() -> None:
    detector = with_random_weights()
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        code = detector.embed(images, mask)
        assert torch.equal(code, detector.decode_top_down(*detector.encode(images), posterior_mean)[1][0].mu)
    assert code.shape == (len(images), 6)


def test_each_level_has_its_own_warm_up() -> None:
    detector = with_random_weights(beta=2.0, beta_warmup=(1.0, 0.5, 0.1), free_bits=0.0)
    images, mask = images_of(*healthy_scan(0), detector.view)
    with torch.no_grad():
        losses = detector.loss(images, mask, StepInfo(24, 100, torch.Generator().manual_seed(0)))
    expected = 0.5 * losses["kl_1"] + 1.0 * losses["kl_2"] + 2.0 * losses["kl_3"] - losses["likelihood"]
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["kl"], losses["kl_1"] + losses["kl_2"] + losses["kl_3"])


def test_free_bits_set_a_lower_bound_on_the_kl_of_a_level() -> None:
    detector = new(free_bits=7.0, beta_warmup=(0.0, 0.0, 0.0))
    images, mask = images_of(*healthy_scan(0), detector.view)
    losses = detector.loss(images, mask, StepInfo(0, 100, torch.Generator().manual_seed(0)))
    assert losses["kl"] == 0
    torch.testing.assert_close(losses["loss"] + losses["likelihood"], 3 * 7.0 * len(images) / mask.sum())


def test_a_collapsed_level_gives_a_warning_with_a_remedy() -> None:
    images, mask = images_of(*healthy_scan(0), new().view)
    batches = [(images, mask, torch.full((len(images), 2), torch.nan))]
    collapsed, trained = new().diagnostics(iter(batches)), with_random_weights().diagnostics(iter(batches))
    assert collapsed.numbers == {"nats_1": 0.0, "nats_2": 0.0, "nats_3": 0.0}
    assert [warning[:7] for warning in collapsed.warnings] == ["level 1", "level 2", "level 3"]
    assert "model.free_bits" in collapsed.warnings[0]
    with torch.inference_mode():
        total = float(with_random_weights().evidence(images, mask).terms["kl"].mean())
    assert sum(trained.numbers.values()) == pytest.approx(total, rel=1e-4)
    assert trained.warnings == ()


@pytest.mark.parametrize("view", [{"kind": "patch", "size": (8, 8, 8)}, {"kind": "volume"}])
def test_patches_and_volumes_can_be_trained_on(view: dict[str, Any], tmp_path: Path) -> None:
    detector = new(view=view, latents=(6, 2), beta_warmup=(0.2, 0.2))
    training = TrainingSettings(steps=2, batch_size=2, validate_every=2)
    fit(detector, healthy_cohort(3), [], FitRun(tmp_path, training, device="cpu"))
    images, mask = images_of(*healthy_scan(9), detector.view)
    with torch.inference_mode():
        assert detector.evidence(images, mask).maps["kl_2"].shape == mask.shape


def test_levels_that_could_copy_the_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"found 326 latent units for an image of 320 voxels"):
        fit(new(latents=(6, 8, 2)), healthy_cohort(), [], FitRun(tmp_path, device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (8, 12)}, "multiples of 8"),
        ({"latents": (6, 2, 1, 1), "beta_warmup": (0, 0, 0, 0)}, "at most 3 of them"),
        ({"latents": (6, 0, 1)}, "numbers of 1 or more"),
        ({"beta_warmup": (0.2, 0.2)}, "for each of the 3 latents"),
        ({"beta_warmup": (0.2, 0.2, 2.0)}, "a share, 0 to 1"),
        ({"residual_levels": 4}, "found 4; there are 3 latents"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        new(**changes)


def test_images_of_any_shape_are_padded_and_cropped() -> None:
    grid = Geometry((15, 18, 11), GRID.affine)
    detector = HierarchicalVariationalAutoencoder(HierarchicalSettings.parse(SMALL, "model"), grid)
    images = torch.rand(2, 1, 15, 18)
    assert all(m.shape == images.shape for m in detector.evidence(images, images > 0).maps.values())


def test_the_bound_with_one_sample_is_an_estimate_of_the_elbo() -> None:
    detector, samples = with_random_weights(), []
    images, mask = images_of(*healthy_scan(0), detector.view)
    rng = torch.Generator().manual_seed(4)

    def sampler(mu: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        sd = (0.5 * log_variance).exp()
        samples.append(mu + sd * torch.randn(mu.shape, generator=rng))
        return samples[-1]

    with torch.no_grad():
        output, levels = detector.decode_top_down(*detector.encode(images), sampler)
    expected = (Normal(output, 0.1).log_prob(images) * mask).flatten(1).sum(1)
    for level, z in zip(levels, samples, strict=True):
        prior = Normal(level.prior_mu, (0.5 * level.prior_log_variance).exp()).log_prob(z)
        posterior = Normal(level.mu, (0.5 * level.log_variance).exp()).log_prob(z)
        expected = expected + (prior - posterior).flatten(1).sum(1)
    bound = detector.importance_bound(images, mask, 1, torch.Generator().manual_seed(4))
    torch.testing.assert_close(bound, expected)


@pytest.mark.slow
def test_the_importance_bound_rises_with_the_number_of_samples() -> None:
    detector = with_random_weights(noise_sd=1.0)
    images, mask = images_of(*healthy_scan(0), detector.view)
    rng = torch.Generator().manual_seed(0)
    bounds = [
        torch.stack([detector.importance_bound(images, mask, k, rng) for _ in range(60 // k)]).mean()
        for k in (1, 5, 60)
    ]
    assert bounds[0] < bounds[1] < bounds[2]


def test_a_bernoulli_model_returns_probabilities_and_their_elbo() -> None:
    detector = with_random_weights(likelihood="bernoulli", residual_levels=3)
    voxels, mask = healthy_scan(0)
    images, mask = images_of((voxels > 0.7).astype("float32"), mask, detector.view)
    with torch.inference_mode():
        evidence, reconstruction = detector.evidence(images, mask), detector.reconstruct(images, mask)
        samples = detector.sample(3, torch.Generator().manual_seed(0))
    assert all(((x >= 0) & (x <= 1)).all() for x in (reconstruction, samples))
    log_odds, _ = detector.decode_top_down(*detector.encode(images), posterior_mean)
    likelihood = (Bernoulli(logits=log_odds).log_prob(images) * mask).flatten(1).sum(1)
    torch.testing.assert_close(evidence.terms["negative_elbo"], evidence.terms["kl"] - likelihood)


def test_intensities_outside_0_to_1_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Bernoulli likelihood expects 0 to 1"):
        fit(new(likelihood="bernoulli"), healthy_cohort(), [], FitRun(tmp_path, device="cpu"))


def test_a_bernoulli_model_decodes_codes_to_probabilities() -> None:
    detector = with_random_weights(likelihood="bernoulli")
    code = 3 * random(5, detector.settings.latents[0])
    with torch.no_grad():
        decoded = detector.decode(code)
    assert float(decoded.min()) >= 0
    assert float(decoded.max()) <= 1
