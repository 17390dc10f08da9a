"""Autoencoder: normal anatomy fits through a narrow latent, a lesion does not.

Idea. An encoder maps an image to a short vector z, a decoder maps z back. Trained on healthy images only, with z
too short to hold anything else, the pair can rebuild healthy anatomy and nothing more:

    z = E(x),    x̂ = D(z),    L = Σ m (x − x̂)² / Σ m,    r = x − x̂

The length of z decides more than anything else: too long and lesions pass through, too short and healthy detail
becomes residual.

Source: Baur, Denner, Wiestler, Navab & Albarqouni 2021, "Autoencoders for unsupervised anomaly segmentation in
brain MR images: a comparative study" (the dense autoencoder).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from monai.networks.nets import AutoEncoder
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.views import View, VolumeSource
from anomaly.models.base import ModelSettings
from anomaly.models.network import (
    NetworkDetector,
    centre,
    crop,
    masked_mean,
    pad,
    padded_shape,
    refuse_large_latent,
)
from anomaly.training.protocols import Moment

GROUPS = 8


class AutoencoderSettings(ModelSettings):
    """Settings of the autoencoder."""

    family: Literal["ae"] = "ae"
    view: View = View(kind="slice", axis=2)
    channels: tuple[int, ...] = Field(
        (32, 64, 128, 128),
        min_length=1,
        description="channels of the stages; each halves the image; multiples of 8",
    )
    latent_size: int = Field(128, ge=1, description="length of the latent vector z")


class DenseAutoencoder(nn.Module):
    """Strided convolutions, a dense latent, transposed convolutions."""

    def __init__(self, dims: int, in_channels: int, channels: tuple[int, ...], shape: tuple[int, ...], latent: int):
        super().__init__()
        strides = [2] * len(channels)
        self.convolutions = AutoEncoder(
            dims, in_channels, 1, channels, strides, norm=("group", {"num_groups": GROUPS}), act="leakyrelu"
        )
        self.coarse = (channels[-1], *(n // 2 ** len(channels) for n in shape))
        self.to_latent = nn.Linear(math.prod(self.coarse), latent)
        self.from_latent = nn.Linear(latent, math.prod(self.coarse))

    def encode(self, images: Tensor) -> Tensor:
        """Return z ``(B, latent)``."""
        z: Tensor = self.to_latent(self.convolutions.encode(images).flatten(1))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return images ``(B, 1, *S)``."""
        images: Tensor = self.convolutions.decode(self.from_latent(z).reshape(-1, *self.coarse))
        return images


class Autoencoder(NetworkDetector):
    """Residual of a dense convolutional autoencoder."""

    family = "ae"
    Settings: ClassVar[type[ModelSettings]] = AutoencoderSettings
    settings: AutoencoderSettings
    network: DenseAutoencoder

    def build(self) -> nn.Module:
        """Return encoder and decoder for images padded until every stage can halve them."""
        settings = self.settings
        return DenseAutoencoder(
            self.view.spatial_dims, self.view.channels, settings.channels, self.padded, settings.latent_size
        )

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape the network works on."""
        return padded_shape(self.image_shape, 2 ** len(self.settings.channels))

    def check(self, train: VolumeSource) -> None:
        """Refuse a latent that could copy the image."""
        del train
        refuse_large_latent(self.settings.latent_size, self.view.channels, self.image_shape)

    def loss(self, images: Tensor, mask: Tensor, at: Moment, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error inside the mask."""
        del at, corrupted
        error = self.reconstruct(images, mask) - centre(images)
        return {"loss": masked_mean(error.float() ** 2, mask)}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return D(E(x))."""
        del mask
        return crop(self.network.decode(self.network.encode(pad(images, self.padded))), self.image_shape)
