"""Variational autoencoder: what is normal is what the model finds probable.

Idea. The encoder gives a distribution q(z|x) = N(μ, σ²) instead of a point, held close to the prior N(0, 1). A
healthy image is rebuilt well (likelihood) from a code that is not surprising (KL); their sum bounds the image's
log-probability from below:

    log p(x) ≥ ELBO = E_q[log p(x|z)] − KL(q‖p)
    KL = −½ Σ (1 + log σ² − μ² − σ²)                              closed form
    log p(x|z) = −½ Σ ((x − x̂)/s)² − N log(s √2π)                 N voxels inside the mask, s the noise SD; or
    log p(x|z) = Σ x log x̂ + (1 − x) log(1 − x̂)                    Bernoulli, for intensities of 0 to 1
    z = μ + σ·ε,  ε ~ N(0, 1)                                      reparameterised
    L = (−log p(x|z) + β·KL) / N                                    β rises from 0 over the warm-up

Against a collapsed code, the KL of each latent unit can be left alone below λ nats (free bits). With context
encoding, some images are shown with boxes hidden; they are rebuilt whole from the mean code, and their KL, which
speaks of the boxes, does not count: L = −log p(x|μ(x̃)) / N.

Evidence: the residual x − x̂ at z = μ; per image the KL and the negative ELBO, in nats; on request the map
|x − x̂| · |∂KL/∂x|, which is high where the image is rebuilt badly and makes the code surprising, and the map
x − x', where x' is the image moved uphill on the ELBO while it may not move far in total variation.

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes"; Kingma et al. 2016, "Improved Variational
Inference with Inverse Autoregressive Flow" (free bits); Zimmerer et al. 2018, "Context-encoding Variational
Autoencoder for Unsupervised Anomaly Detection"; Zimmerer et al. 2019, "Unsupervised Anomaly Localization using
Variational Auto-Encoders" (the gradient map); Chen et al. 2020, "Unsupervised lesion detection via image
restoration with a normative prior".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from monai.networks.nets import VarAutoEncoder
from torch import Tensor, nn

from anomaly.models.base import ModelSettings, StepInfo
from anomaly.models.components.network import crop, pad
from anomaly.models.components.random_boxes import nothing_hidden
from anomaly.models.components.variational import beta_at, free_energy, kl_per_dim, reparameterize
from anomaly.models.components.variational_detector import CodeSettings, VariationalDetector


class VariationalSettings(CodeSettings):
    """Settings of the variational autoencoder."""

    family: Literal["vae"] = "vae"


class VariationalAutoencoder(VariationalDetector):
    """Residual, KL and ELBO of a variational autoencoder."""

    family = "vae"
    Settings: ClassVar[type[ModelSettings]] = VariationalSettings
    settings: VariationalSettings

    def build(self) -> nn.Module:
        """Return encoder and decoder."""
        network: nn.Module = VarAutoEncoder(**self.architecture())
        return network

    def encode(self, images: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return μ and log σ², each ``(B, latent)``."""
        del given
        mu, log_variance = self.network.encode_forward(pad(images, self.padded))  # type: ignore[operator]
        return mu.float(), log_variance.float().clamp(-12, 12)

    def output(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """Return x̂ ``(B, 1, *S)``, or its log-odds."""
        del given
        return crop(self.network.decode_forward(z, use_sigmoid=False), self.image_shape)  # type: ignore[operator]

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the negative ELBO per voxel, with β warmed up and free bits, and its parts."""
        shown, hidden = corrupted or (images, nothing_hidden(images))
        mu, log_variance = self.encode(shown)
        z = torch.where(hidden[:, None], mu, reparameterize(mu, log_variance, at.rng))
        likelihood = self.log_likelihood(images, self.output(z), mask)
        beta = beta_at(self.settings.beta, self.settings.beta_warmup, at)
        return free_energy(
            likelihood, kl_per_dim(mu, log_variance), mask, beta, self.settings.free_bits, counted=~hidden
        )
