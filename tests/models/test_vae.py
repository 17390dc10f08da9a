from __future__ import annotations

import torch
from torch.distributions import Normal

from anomaly.models.vae import VariationalAutoencoder, VariationalSettings
from anomaly.models.variational import kl
from anomaly.training.protocols import Moment
from tests.models.factories import GRID, healthy_scan, images_of


def new(**changes: object) -> VariationalAutoencoder:
    settings = VariationalSettings.parse({"channels": (8, 16), "latent_size": 6, **changes}, "model")
    return VariationalAutoencoder(settings, GRID)


def moment(step: int, steps: int = 100) -> Moment:
    return Moment(step, steps, torch.Generator().manual_seed(0))


def test_the_log_likelihood_is_that_of_torch_inside_the_mask() -> None:
    detector = new(noise_sd=0.2)
    images, mask = images_of(*healthy_scan(0), detector.view)
    reconstruction = torch.zeros_like(images)
    expected = (Normal(reconstruction, 0.2).log_prob(images) * mask).flatten(1).sum(1)
    torch.testing.assert_close(detector.log_likelihood(images, reconstruction, mask), expected)


def test_beta_rises_over_the_warm_up() -> None:
    detector = new(beta=2.0, beta_warmup=0.5)
    images, mask = images_of(*healthy_scan(0), detector.view)

    def beta(step: int) -> float:
        with torch.no_grad():
            losses = detector.loss(images, mask, moment(step))
        return float((losses["loss"] + losses["likelihood"]) / losses["kl"])

    assert abs(beta(0) - 2.0 / 50) < 1e-2
    assert abs(beta(49) - 2.0) < 1e-2
    assert abs(beta(99) - 2.0) < 1e-2


def test_the_negative_elbo_is_the_kl_minus_the_log_likelihood() -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    evidence = detector.evidence(images, mask)
    likelihood = detector.log_likelihood(images, detector.reconstruct(images, mask), mask)
    torch.testing.assert_close(evidence.terms["negative_elbo"], evidence.terms["kl"] - likelihood)


def test_the_kl_gradient_is_the_slope_of_the_kl_even_under_inference_mode() -> None:
    detector = new()
    images, _ = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        slope = detector.kl_gradient(images[5:6])[0, 0, 8, 10]
    step = torch.zeros_like(images[5:6])
    step[0, 0, 8, 10] = 1e-2
    with torch.no_grad():
        ahead, behind = (kl(*detector.encode(images[5:6] + sign * step))[0] for sign in (1, -1))
    torch.testing.assert_close(slope, ((ahead - behind) / 2e-2).abs(), rtol=0.05, atol=1e-4)


def test_the_same_image_has_the_same_loss_with_the_same_generator() -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    first, second = (detector.loss(images, mask, moment(3))["loss"] for _ in range(2))
    assert torch.equal(first, second)
