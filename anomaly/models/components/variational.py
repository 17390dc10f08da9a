"""Gaussian latents and likelihoods of variational autoencoders. A building block, not a family.

    KL(N(μ, σ²) ‖ N(0, 1)) = −½ Σ (1 + log σ² − μ² − σ²)          nats, closed form
    KL(N(μ, σ²) ‖ N(m, s²)) = ½ Σ (log s²/σ² + (σ² + (μ − m)²)/s² − 1)
    z = μ + σ·ε,  ε ~ N(0, 1)                                     reparameterisation
    log p(x|z) = −½ Σ ((x − x̂)/s)² − N log(s √2π)                 N voxels inside the mask
    log p(x|z) = Σ x log x̂ + (1 − x) log(1 − x̂),  x̂ = σ(o)         Bernoulli, for intensities of 0 to 1
    L = (Σ_d β·max(λ, mean over images of KL_d) − log p(x|z)) / N  free bits: no gradient below λ nats

With a Gaussian likelihood the output of the decoder is x̂. With a Bernoulli likelihood it is o, the log-odds that a
voxel is 1; the likelihood is computed from o, because x̂ rounds to 1 where log(1 − x̂) still matters.

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes" (appendix C for both likelihoods); Kingma et al.
2016, "Improved Variational Inference with Inverse Autoregressive Flow" (free bits).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import apply_mask, residual, target_slice

Likelihood = Literal["gaussian", "bernoulli"]


def kl_per_dim(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) of each unit, shaped as μ, in nats (Kingma & Welling 2014, appendix B)."""
    return -0.5 * (1 + log_variance - mu**2 - log_variance.exp())


def kl(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) of each image ``(B,)``, in nats."""
    return kl_per_dim(mu, log_variance).sum(dim=1)


class DiagonalGaussian(NamedTuple):
    """N(μ, σ²) with independent units, e.g. the posterior q(z|x) of each image; both are ``(B, D)``."""

    mu: Tensor
    log_variance: Tensor

    def kl_per_dim(self) -> Tensor:
        """Return KL(N(μ, σ²) ‖ N(0, 1)) of each unit ``(B, D)``, in nats."""
        return kl_per_dim(*self)

    def kl(self) -> Tensor:
        """Return KL(N(μ, σ²) ‖ N(0, 1)) of each image ``(B,)``, in nats."""
        return kl(*self)

    def sample(self, rng: torch.Generator) -> Tensor:
        """Return a sample z ``(B, D)`` through which gradients flow."""
        return reparameterize(*self, rng)


def kl_between(mu: Tensor, log_variance: Tensor, prior_mu: Tensor, prior_log_variance: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(m, s²)) of each unit, shaped as μ, in nats."""
    spread = (log_variance - prior_log_variance).exp() + (mu - prior_mu) ** 2 / prior_log_variance.exp()
    return 0.5 * (prior_log_variance - log_variance + spread - 1).clamp_min(
        0
    )  # rounding errors can make it negative


def with_free_bits(divergence: Tensor, counted: Tensor, free_bits: float) -> Tensor:
    """Return max(λ, mean KL_d) of each unit ``(D,)``, in nats (Kingma et al. 2016).

    Parameters
    ----------
    divergence
        ``(B, D)`` KL of each unit or group of units, in nats.
    counted
        ``(B,)`` weight of each image in the mean; if all are 0, the mean is 0.
    free_bits
        λ, in nats; 0 gives the plain mean KL.
    """
    mean = (counted[:, None] * divergence).sum(dim=0) / counted.sum().clamp_min(1)
    return mean.clamp_min(free_bits)


def free_energy(
    likelihood: Tensor,
    divergence: Tensor,
    mask: Tensor,
    beta: float | Tensor,
    free_bits: float = 0.0,
    counted: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return L = (Σ_d β·max(λ, KL_d) − log p(x|z)) / N of a batch as ``"loss"``, and its parts, in nats per voxel.

    Parameters
    ----------
    likelihood
        ``(B,)`` log p(x|z), in nats.
    divergence
        ``(B, D)`` KL of each unit or group of units, in nats.
    mask
        ``(B, 1, *S)`` bool. Division by its N voxels makes losses of images of different sizes comparable.
    beta
        Weight of the KL, a scalar or ``(D,)``.
    free_bits
        λ, in nats.
    counted
        ``(B,)`` bool: images whose KL is part of the loss; None for all.
    """
    counted = torch.ones_like(likelihood) if counted is None else counted.float()
    voxels = mask.sum().clamp_min(1)
    floored = counted.sum() * (beta * with_free_bits(divergence, counted, free_bits)).sum()
    return {
        "loss": (floored - likelihood.sum()) / voxels,
        "likelihood": likelihood.sum() / voxels,
        "kl": (counted[:, None] * divergence).sum() / voxels,
    }


def reparameterize(mu: Tensor, log_variance: Tensor, rng: torch.Generator) -> Tensor:
    """Return a sample z of N(μ, σ²) through which gradients flow."""
    return mu + (0.5 * log_variance).exp() * torch.randn(mu.shape, generator=rng, device=mu.device)


def log_density(z: Tensor, mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return log N(z; μ, σ²) of each image ``(B,)``, in nats, summed over units."""
    units = -0.5 * ((z - mu) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi))
    return units.flatten(1).sum(1)


def log_likelihood(
    images: Tensor, output: Tensor, mask: Tensor, noise_sd: float, likelihood: Likelihood = "gaussian"
) -> Tensor:
    """Return log p(x|z) of each image ``(B,)``, in nats, summed over the voxels inside the mask.

    Parameters
    ----------
    images
        ``(B, C, *S)``. With a Bernoulli likelihood intensities are clipped to 0 to 1, outside which it is
        undefined.
    output
        Output of the decoder ``(B, 1, *S)``: x̂, or o with a Bernoulli likelihood.
    mask
        ``(B, 1, *S)`` bool.
    noise_sd
        s of the Gaussian, in intensity units.
    likelihood
        Which of the two likelihoods.
    """
    if likelihood == "bernoulli":
        truth = target_slice(images).float().clamp(0, 1)
        cross_entropy = F.binary_cross_entropy_with_logits(output.float(), truth, reduction="none")
        return -apply_mask(cross_entropy, mask).flatten(1).sum(1)
    scaled = residual(images, output, mask) / noise_sd
    log_norm = math.log(noise_sd * math.sqrt(2 * math.pi))
    return -0.5 * (scaled**2).flatten(1).sum(1) - mask.flatten(1).sum(1) * log_norm


def expected(output: Tensor, likelihood: Likelihood) -> Tensor:
    """Return x̂ from the output of the decoder; with a Bernoulli likelihood, the probability that a voxel is 1."""
    return output.float().sigmoid() if likelihood == "bernoulli" else output


def check_unit_range(train: VolumeSource) -> None:
    """Raise TrainingError if a volume has intensities outside 0 to 1; for a Bernoulli likelihood."""
    for index in range(len(train)):
        voxels, mask = train[index]
        inside = voxels[mask]
        if len(inside) and not 0 <= inside.min() <= inside.max() <= 1:
            raise TrainingError(
                f"training scan {index + 1} of {len(train)} has intensities from {inside.min():.3g} to "
                f"{inside.max():.3g}; a Bernoulli likelihood expects 0 to 1: scale the volumes, or set "
                "model.likelihood to gaussian"
            )
