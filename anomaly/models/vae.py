"""Variational autoencoder: what is normal is what the model finds probable.

Idea. The encoder gives a distribution q(z|x) = N(μ, σ²) instead of a point, held close to the prior N(0, 1). A
healthy image is rebuilt well (likelihood) from a code that is not surprising (KL); their sum bounds the image's
log-probability from below:

    log p(x) ≥ ELBO = E_q[log p(x|z)] − KL(q‖p)
    KL = −½ Σ (1 + log σ² − μ² − σ²)                              closed form
    log p(x|z) = −½ Σ ((x − x̂)/s)² − N log(s √2π)                 N voxels inside the mask, s the noise SD
    z = μ + σ·ε,  ε ~ N(0, 1)                                      reparameterised
    L = (−log p(x|z) + β·KL) / N                                    β rises from 0 over the warm-up

Evidence: the residual x − x̂ at z = μ; per image the KL and the negative ELBO, in nats; on request the map
|x − x̂| · |∂KL/∂x|, which is high where the image is rebuilt badly and makes the code surprising.

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes"; Zimmerer et al. 2019, "Unsupervised Anomaly
Localization using Variational Auto-Encoders" (the gradient map).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from monai.networks.nets import VarAutoEncoder
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.views import View, VolumeSource
from anomaly.models.base import Evidence, ModelSettings
from anomaly.models.network import (
    NetworkDetector,
    centre,
    crop,
    pad,
    padded_shape,
    refuse_large_latent,
    residual,
    within,
)
from anomaly.models.variational import kl, log_likelihood, reparameterised, warmed_up
from anomaly.training.protocols import Moment

GROUPS = 8


class VariationalSettings(ModelSettings):
    """Settings of the variational autoencoder."""

    family: Literal["vae"] = "vae"
    view: View = View(kind="slice", axis=2)
    channels: tuple[int, ...] = Field(
        (32, 64, 128, 128),
        min_length=1,
        description="channels of the stages; each halves the image; multiples of 8",
    )
    latent_size: int = Field(128, ge=1, description="length of the latent vector z")
    beta: float = Field(1.0, ge=0, description="weight of the KL; 1 is the ELBO")
    beta_warmup: float = Field(0.2, ge=0, le=1, description="share of the training over which β rises from 0")
    noise_sd: float = Field(0.1, gt=0, description="s: SD of the likelihood, intensity units")
    kl_gradient: bool = Field(False, description="also give the map |residual| · |∂KL/∂x|; doubles scoring time")


class VariationalAutoencoder(NetworkDetector):
    """Residual, KL and ELBO of a variational autoencoder."""

    family = "vae"
    Settings: ClassVar[type[ModelSettings]] = VariationalSettings
    settings: VariationalSettings

    def build(self) -> nn.Module:
        """Return encoder and decoder for images padded until every stage can halve them."""
        settings = self.settings
        network: nn.Module = VarAutoEncoder(
            spatial_dims=self.view.spatial_dims,
            in_shape=(self.view.channels, *self.padded),
            out_channels=1,
            latent_size=settings.latent_size,
            channels=settings.channels,
            strides=[2] * len(settings.channels),
            norm=("group", {"num_groups": GROUPS}),
            act="leakyrelu",
            use_sigmoid=False,
        )
        return network

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape the network works on."""
        return padded_shape(self.image_shape, 2 ** len(self.settings.channels))

    def check(self, train: VolumeSource) -> None:
        """Refuse a latent that could copy the image."""
        del train
        refuse_large_latent(self.settings.latent_size, self.view.channels, self.image_shape)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ², each ``(B, latent)``."""
        mu, log_variance = self.network.encode_forward(pad(images, self.padded))  # type: ignore[operator]
        return mu.float(), log_variance.float().clamp(-12, 12)

    def decode(self, z: Tensor) -> Tensor:
        """Return x̂ ``(B, 1, *S)``."""
        return crop(self.network.decode_forward(z, use_sigmoid=False), self.image_shape)  # type: ignore[operator]

    def loss(self, images: Tensor, mask: Tensor, at: Moment, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the negative ELBO per voxel, with β warmed up, and its parts."""
        del corrupted
        mu, log_variance = self.encode(images)
        reconstruction = self.decode(reparameterised(mu, log_variance, at.rng))
        voxels = mask.sum().clamp_min(1)
        likelihood = self.log_likelihood(images, reconstruction, mask).sum() / voxels
        divergence = kl(mu, log_variance).sum() / voxels
        beta = warmed_up(self.settings.beta, self.settings.beta_warmup, at)
        return {"loss": -likelihood + beta * divergence, "likelihood": likelihood, "kl": divergence}

    def log_likelihood(self, images: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
        """Return log p(x|z) of each image ``(B,)``, nats, over the voxels inside the mask."""
        return log_likelihood(images, reconstruction, mask, self.settings.noise_sd)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the decoding of the mean code."""
        del mask
        return self.decode(self.encode(images)[0])

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the residual, the KL and the negative ELBO at the mean code; see the module's docstring."""
        mu, log_variance = self.encode(images)
        reconstruction = self.decode(mu)
        difference = residual(images, reconstruction, mask)
        divergence = kl(mu, log_variance)
        maps = {"residual": difference}
        if self.settings.kl_gradient:
            maps["kl_gradient"] = difference.abs() * within(self.kl_gradient(images), mask)
        terms = {"kl": divergence, "negative_elbo": divergence - self.log_likelihood(images, reconstruction, mask)}
        return Evidence(maps, within(reconstruction, mask), terms)

    def kl_gradient(self, images: Tensor) -> Tensor:
        """Return |∂KL/∂x| of the middle channel ``(B, 1, *S)``; switches gradients on for itself alone."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            variable = images.detach().clone().requires_grad_()
            total = kl(*self.encode(variable)).sum()
            (gradient,) = torch.autograd.grad(total, variable)
        return centre(gradient).abs()
