"""Convolutional autoencoder with a dense latent, and reconstruction losses. A building block, not a family.

    f = E_K(… E_1(x))              stage E_k: convolution of stride 2, group norm, leaky ReLU
    z = W f + b                     the latent vector
    x̂ = D_1(… D_K(W′ z + b′))      stage D_k: transposed convolution, and, except in D_1, norm and leaky ReLU

Images are padded so that every stage can halve them.

The reconstruction x̂ is compared with the image x inside the mask m by one of these losses:

    l2          Σ m (x̂ − x)² / Σ m
    l1          Σ m |x̂ − x| / Σ m
    ssim        Σ m (1 − SSIM(x̂, x)) / Σ m
    multiscale  ¼ Σ_k Σ |A_k m (x̂ − x)| / Σ A_k m,    A_k the mean over blocks of 2ᵏ voxels, k = 0 … 3

SSIM compares mean, contrast and structure within a Gaussian window about each voxel. μ, σ² and σ_x̂x are the
local means, variances and covariance of both images, which are set to 0 outside the mask:

    SSIM = (2 μ_x̂ μ_x + c₁)(2 σ_x̂x + c₂) / ((μ_x̂² + μ_x² + c₁)(σ_x̂² + σ_x² + c₂)),    c₁ = 0.01², c₂ = 0.03²

The constants are meant for intensities of about 0 to 1. The terms of ``multiscale`` are the l1 of increasingly
coarse images, whose blocks are averaged over their voxels inside the mask and weighted by their number. Fine
detail, which a small latent cannot represent, averages out at the coarse scales; an extended shift of intensity
contributes at all four.

Source: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment: from error visibility to structural
similarity"; Bergmann et al. 2019, "Improving unsupervised defect segmentation by applying structural similarity to
autoencoders".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.metrics.regression import compute_ssim_and_cs
from monai.networks.nets import AutoEncoder
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.models.base import (
    NORM_GROUPS,
    Evidence,
    ModelSettings,
    NetworkDetector,
    Width,
    apply_mask,
    crop,
    masked_mean,
    pad,
    padded_shape,
    refuse_large_latent,
    residual,
)

LossName = Literal["l2", "l1", "ssim", "multiscale"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

SSIM_WINDOW = {2: 11, 3: 7}  # dimensions → window size in voxels; smaller in 3D, where the cost grows with its cube
SSIM_WINDOW_SD = 1.5  # voxels
N_SCALES = 4  # of the multiscale loss


class LatentSettings(ModelSettings):
    """Settings of a convolutional network with a dense latent."""

    view: ImageView = ImageView(kind="slice", axis=2)
    channels: tuple[Width, ...] = Field(
        (32, 64, 128, 128),
        min_length=1,
        description="channels of the stages; each halves the image; multiples of 8",
    )
    latent_size: int = Field(128, ge=1, description="length of the latent vector z")


class LatentNetwork(nn.Module):
    """A network with an encoder to a latent vector and a decoder."""

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
    """A detector whose latent must be too small to copy an image."""

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
    """A detector whose network is a :class:`LatentNetwork`; a family implements ``build`` and ``loss``."""

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
        dims, in_channels, 1, channels, strides, norm=("group", {"num_groups": NORM_GROUPS}), act="leakyrelu"
    )


def coarse_shape(channels: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape ``(C, *S)`` of the features of padded images after all stages of the encoder."""
    return (channels[-1], *(n // 2 ** len(channels) for n in shape))


def l2(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error inside the mask, a scalar; all three are ``(B, 1, *S)``."""
    return masked_mean((reconstruction - image).float() ** 2, mask)


def l1(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute error inside the mask."""
    return masked_mean((reconstruction - image).float().abs(), mask)


def ssim(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of 1 − SSIM inside the mask."""
    return masked_mean(dissimilarity(reconstruction, image, mask), mask)


def multiscale(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return the l1 of images 1, 2, 4 and 8 times coarser, averaged."""
    shape = padded_shape(image.shape[2:], 2 ** (N_SCALES - 1))
    error, weight = pad(apply_mask(reconstruction - image, mask), shape), pad(mask.float(), shape)
    average = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    terms = []
    for _ in range(N_SCALES):
        terms.append(error.abs().sum() / weight.sum().clamp_min(1e-6))
        error, weight = average(error, 2), average(weight, 2)
    return torch.stack(terms).mean()


def dissimilarity(reconstruction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Return 1 − SSIM about each voxel ``(B, 1, *S)``, 0 to 2; 0 outside the mask."""
    dims = image.ndim - 2
    margin = [SSIM_WINDOW[dims] // 2] * (2 * dims)
    with torch.autocast(
        image.device.type, enabled=False
    ):  # float32, because variances are differences of nearly equal numbers
        first, second = (F.pad(apply_mask(values, mask), margin) for values in (reconstruction, image))
        similarity, _ = compute_ssim_and_cs(
            first, second, dims, kernel_size=[SSIM_WINDOW[dims]] * dims, kernel_sigma=[SSIM_WINDOW_SD] * dims
        )
        return apply_mask(1 - similarity, mask)


LOSSES: dict[LossName, Loss] = {"l2": l2, "l1": l1, "ssim": ssim, "multiscale": multiscale}
