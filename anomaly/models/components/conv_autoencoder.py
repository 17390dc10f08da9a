"""What autoencoders with a dense latent share: stages that halve an image. A building block, not a family.

    f = E_K(… E_1(x))              stage E_k: convolution of stride 2, group norm, leaky ReLU
    z = W f + b                     the latent vector
    x̂ = D_1(… D_K(W′ z + b′))      stage D_k: transposed convolution; D_1 ends in it, the others go on as E_k

Images are padded until every stage can halve them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.networks.nets import AutoEncoder
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.models.base import Evidence, ModelSettings
from anomaly.models.components.network import (
    GROUPS,
    NetworkDetector,
    Width,
    apply_mask,
    crop,
    pad,
    padded_shape,
    refuse_large_latent,
    residual,
)


class LatentSettings(ModelSettings):
    """Settings of a model with stages that halve an image, and a dense latent."""

    view: ImageView = ImageView(kind="slice", axis=2)
    channels: tuple[Width, ...] = Field(
        (32, 64, 128, 128),
        min_length=1,
        description="channels of the stages; each halves the image; multiples of 8",
    )
    latent_size: int = Field(128, ge=1, description="length of the latent vector z")


class LatentNetwork(nn.Module):
    """A network that goes by way of a latent vector."""

    def encode(self, images: Tensor) -> Tensor:
        """Return z ``(B, latent)`` of padded images ``(B, C, *S)``."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Return padded images ``(B, 1, *S)``."""
        raise NotImplementedError


class DenseAutoencoder(LatentNetwork):
    """Strided convolutions, a dense latent, transposed convolutions."""

    def __init__(self, dims: int, in_channels: int, channels: tuple[int, ...], shape: tuple[int, ...], latent: int):
        super().__init__()
        self.convolutions = stages(dims, in_channels, channels)
        self.coarse = coarse_shape(channels, shape)
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


class BottleneckDetector(NetworkDetector):
    """A detector whose latent must be too short to copy an image."""

    settings: LatentSettings

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape the network works on."""
        return padded_shape(self.image_shape, 2 ** len(self.settings.channels))

    def check(self, train: VolumeSource) -> None:
        """Refuse a latent that could copy the image."""
        del train
        refuse_large_latent(self.settings.latent_size, self.view.channels, self.image_shape)


class LatentDetector(BottleneckDetector):
    """A detector whose network is a :class:`LatentNetwork`; a family builds it and says what is minimised."""

    network: LatentNetwork

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return D(E(x))."""
        return self.decode(self.embed(images, mask))

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the signed residual and the code z."""
        del covariates
        z = self.embed(images, mask)
        reconstruction = self.decode(z)
        maps = {"residual": residual(images, reconstruction, mask)}
        return Evidence(maps, apply_mask(reconstruction, mask), embedding=z)

    def decode(self, z: Tensor) -> Tensor:
        """Return x̂ ``(B, 1, *S)`` of codes ``(B, latent)``."""
        return crop(self.network.decode(z), self.image_shape)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return z ``(B, latent)``."""
        del mask
        return self.network.encode(pad(images, self.padded))


def stages(dims: int, in_channels: int, channels: Sequence[int]) -> AutoEncoder:
    """Return the stages of an encoder, ``encode``, and of its decoder, ``decode``, outermost last."""
    strides = [2] * len(channels)
    return AutoEncoder(
        dims, in_channels, 1, channels, strides, norm=("group", {"num_groups": GROUPS}), act="leakyrelu"
    )


def coarse_shape(channels: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape ``(C, *S)`` of what the stages make of padded images."""
    return (channels[-1], *(n // 2 ** len(channels) for n in shape))
