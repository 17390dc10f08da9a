"""Autoencoder: a short latent vector can represent normal anatomy, but not a lesion.

Idea. An encoder maps an image to a short vector z, a decoder maps z back. Both are trained on healthy images only,
and z is too short to hold anything but healthy anatomy:

    z = E(x),    x̂ = D(z),    L = Σ m (x − x̂)² / Σ m,    r = x − x̂

The length of z matters more than anything else: if it is too long, lesions are reconstructed; if it is too short,
healthy detail becomes part of the residual. The loss can be chosen (``loss``, formulas in
:mod:`anomaly.models.components.conv_autoencoder`). With the SSIM loss there is also a map ``dissimilarity``, 1 −
SSIM at each voxel.

Without convolutions both halves are linear. The best linear autoencoder projects on the leading principal
components (Bourlard & Kamp 1988; Baldi & Hornik 1989), like the family ``pca``.

Source: Baur, Denner, Wiestler, Navab & Albarqouni 2021, "Autoencoders for unsupervised anomaly segmentation in
brain MR images: a comparative study" (the dense autoencoder); Bergmann et al. 2019, "Improving unsupervised defect
segmentation by applying structural similarity to autoencoders" (SSIM as loss and as map).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from anomaly.models.base import Evidence, ModelSettings, StepInfo, Width, target_slice
from anomaly.models.components.conv_autoencoder import (
    LOSSES,
    DenseAutoencoder,
    LatentDetector,
    LatentNetwork,
    LatentSettings,
    LossName,
    dissimilarity,
)


class AutoencoderSettings(LatentSettings):
    """Settings of the autoencoder."""

    family: Literal["ae"] = "ae"
    channels: tuple[Width, ...] = Field(
        (32, 64, 128, 128),
        description="channels of the stages, multiples of 8; each halves the image; none: a linear autoencoder",
    )
    loss: LossName = Field("l2", description="the loss: l2, l1, ssim or multiscale")


class LinearAutoencoder(LatentNetwork):
    """z = W x + b and x̂ = W′ z + b′."""

    def __init__(self, in_channels: int, shape: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.shape = shape
        self.to_latent = nn.Linear(in_channels * math.prod(shape), latent)
        self.from_latent = nn.Linear(latent, math.prod(shape))

    def encode(self, images: Tensor) -> Tensor:
        """Return z ``(B, latent)``."""
        z: Tensor = self.to_latent(images.flatten(1))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return images ``(B, 1, *S)``."""
        images: Tensor = self.from_latent(z).reshape(-1, 1, *self.shape)
        return images


class Autoencoder(LatentDetector):
    """Residual of a dense autoencoder, convolutional or linear."""

    family = "ae"
    Settings: ClassVar[type[ModelSettings]] = AutoencoderSettings
    settings: AutoencoderSettings

    def build(self) -> nn.Module:
        """Return encoder and decoder."""
        channels, latent = self.settings.channels, self.settings.latent_size
        if not channels:
            return LinearAutoencoder(self.view.channels, self.padded, latent)
        return DenseAutoencoder(self.view.spatial_dims, self.view.channels, channels, self.padded, latent)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the loss of the settings, inside the mask."""
        del step_info, corrupted
        return {"loss": LOSSES[self.settings.loss](self.reconstruct(images, mask), target_slice(images), mask)}

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the signed residual and, with the SSIM loss, the dissimilarity."""
        del covariates
        evidence = super().evidence(images, mask)
        if self.settings.loss != "ssim":
            return evidence
        maps = {"dissimilarity": dissimilarity(evidence.reconstruction, target_slice(images), mask)}
        return replace(evidence, maps={**evidence.maps, **maps})
