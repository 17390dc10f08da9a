"""Autoencoders with latents that are small images, for latent diffusion. A building block, not a family.

    kl    z ~ q(z|x),    R = λ·KL(q ‖ N(0, 1))                Gaussian latents, lightly regularised
    vq    z = e,         R = ¼ |E(x) − e|²                    e is the codebook entry nearest to E(x)

R is the penalty added to the error of D(z). With vq, codebook entries follow the moving average of the encodings
nearest to them, and gradients pass straight through the quantisation.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (kl); van den Oord,
Vinyals & Kavukcuoglu 2017, "Neural Discrete Representation Learning" (vq).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from monai.networks.nets import VQVAE, AutoencoderKL
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.image_views import ImageView
from anomaly.models.base import NORM_GROUPS, ModelSettings, Width
from anomaly.models.components.diffusion_process import checkerboard
from anomaly.models.components.variational import kl, reparameterize

COMMITMENT_WEIGHT = 0.25  # weight of the commitment loss, of van den Oord et al.
CODEBOOK_DECAY = 0.9  # of the moving averages that the entries of the codebook follow


class AutoencoderSettings(ModelSettings):
    """Settings of an autoencoder whose latents are small images."""

    view: ImageView = ImageView(kind="slice", axis=2)
    autoencoder: Literal["kl", "vq"] = Field(
        "kl", description="kl: Gaussian latents, lightly regularised; vq: latents from a codebook"
    )
    space_to_depth: Literal[1, 2] = Field(2, description="2: every 2×2(×2) voxels become channels first")
    channels: tuple[Width, ...] = Field(
        (32, 64, 64),
        min_length=1,
        description="channels of the autoencoder's stages; each but the first halves the image; multiples of 8",
    )
    latent_channels: int = Field(8, ge=1, description="numbers per latent position")
    kl_weight: float = Field(1e-4, ge=0, description="kl: weight of the divergence, per latent number")
    num_embeddings: int = Field(256, ge=2, description="vq: entries of the codebook")


class Autoencoder(Protocol):
    """Interface of both autoencoders; images have passed space-to-depth."""

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents ``(B, C, *L)``, deterministically."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents."""
        ...

    def training_pass(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and the penalty R for a training step."""
        ...


class GaussianAutoencoder(nn.Module):
    """MONAI's AutoencoderKL, sampled with an explicit random generator."""

    def __init__(self, dims: int, image_channels: int, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.net = AutoencoderKL(
            dims,
            image_channels,
            image_channels,
            num_res_blocks=1,
            channels=settings.channels,
            attention_levels=[False] * len(settings.channels),
            latent_channels=settings.latent_channels,
            norm_num_groups=NORM_GROUPS,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.kl_weight = settings.kl_weight

    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of q(z|x)."""
        mu: Tensor = self.net.encode(images)[0]
        return mu

    def decode(self, z: Tensor) -> Tensor:
        """Return D(z)."""
        decoded: Tensor = self.net.decode(z)
        return decoded

    def training_pass(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return D(z), z ~ q(z|x), and λ·KL(q ‖ N(0, 1)) per latent number."""
        mu, sigma = (part.float() for part in self.net.encode(images))
        log_variance = 2 * sigma.log()
        divergence = kl(mu.flatten(1), log_variance.flatten(1)).sum() / mu.numel()
        return self.decode(reparameterize(mu, log_variance, rng)), self.kl_weight * divergence


class QuantisedAutoencoder(nn.Module):
    """MONAI's VQVAE; only :meth:`training_pass` updates its codebook."""

    def __init__(self, dims: int, image_channels: int, settings: AutoencoderSettings) -> None:
        super().__init__()
        halvings = len(settings.channels) - 1
        self.net = VQVAE(
            dims,
            image_channels,
            image_channels,
            channels=settings.channels,
            num_res_layers=1,
            num_res_channels=settings.channels,
            # Stride, kernel, dilation, padding (, output padding): the first stage keeps the size, others halve.
            downsample_parameters=[(1, 3, 1, 1)] + [(2, 4, 1, 1)] * halvings,
            upsample_parameters=[(2, 4, 1, 1, 0)] * halvings + [(1, 3, 1, 1, 0)],
            num_embeddings=settings.num_embeddings,
            embedding_dim=settings.latent_channels,
            commitment_cost=COMMITMENT_WEIGHT,
            decay=CODEBOOK_DECAY,
        )
        # Each entry starts with a count of 1. With MONAI's count of 0, entries that the first batch does not use
        # would move far away from all others.
        self.net.quantizer.quantizer.ema_cluster_size.fill_(1)

    def encode(self, images: Tensor) -> Tensor:
        """Return the codebook entry e nearest to E(x)."""
        return self.nearest(self.net.encode(images))

    def decode(self, z: Tensor) -> Tensor:
        """Return D of the nearest codebook entries."""
        decoded: Tensor = self.net.decode(self.nearest(z))
        return decoded

    def nearest(self, z: Tensor) -> Tensor:
        """Return the codebook entries nearest to latents, without updating the codebook."""
        quantiser = self.net.quantizer.quantizer
        entries: Tensor = quantiser.embed(quantiser.quantize(z)[2])
        return entries

    def training_pass(self, images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return D(e), with straight-through gradients, and the commitment loss; update the codebook."""
        del rng
        reconstruction, commitment = self.net(images)
        return reconstruction, commitment


def build_autoencoder(dims: int, image_channels: int, settings: AutoencoderSettings) -> Autoencoder:
    """Return the autoencoder that the settings name. It is also a module."""
    kind = GaussianAutoencoder if settings.autoencoder == "kl" else QuantisedAutoencoder
    return kind(dims, image_channels, settings)


def patch_colours(shape: Sequence[int], edge: int, colours: int, origins: Tensor) -> Tensor:
    """Return the checkerboard colour of the patch around each latent position, int64 ``(B, 1, *shape)``.

    Parameters
    ----------
    shape
        L, the spatial shape of the latents.
    edge
        Edge length of a patch, in latent positions.
    colours
        Number of colours, 2 or 4.
    origins
        ``(B, D)`` position of the first latent of each image on the checkerboard.
    """
    return checkerboard(shape, [edge] * len(shape), colours, origins)
