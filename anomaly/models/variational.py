"""What variational models share: Gaussian codes and likelihoods. A building block, not a family.

    KL(N(μ, σ²) ‖ N(0, 1)) = −½ Σ (1 + log σ² − μ² − σ²)          nats, closed form
    z = μ + σ·ε,  ε ~ N(0, 1)                                     reparameterised
    log p(x|z) = −½ Σ ((x − x̂)/s)² − N log(s √2π)                 N voxels inside the mask

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomaly.models.network import residual
from anomaly.training.protocols import Moment


def kl(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) of each image ``(B,)``, nats (Kingma & Welling 2014, appendix B)."""
    return -0.5 * (1 + log_variance - mu**2 - log_variance.exp()).sum(dim=1)


def reparameterised(mu: Tensor, log_variance: Tensor, rng: torch.Generator) -> Tensor:
    """Return a sample z of N(μ, σ²) through which gradients flow."""
    return mu + (0.5 * log_variance).exp() * torch.randn(mu.shape, generator=rng, device=mu.device)


def log_likelihood(images: Tensor, reconstruction: Tensor, mask: Tensor, noise_sd: float) -> Tensor:
    """Return log p(x|z) of each image ``(B,)``, nats, over the voxels inside the mask, with noise SD s."""
    scaled = residual(images, reconstruction, mask) / noise_sd
    log_norm = math.log(noise_sd * math.sqrt(2 * math.pi))
    return -0.5 * (scaled**2).flatten(1).sum(1) - mask.flatten(1).sum(1) * log_norm


def warmed_up(beta: float, share: float, at: Moment) -> float:
    """Return β at a step: it rises linearly from 0 over a share of the training."""
    return beta * min(1.0, (at.step + 1) / max(1.0, share * at.steps))
