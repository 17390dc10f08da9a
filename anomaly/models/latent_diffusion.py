"""Latent diffusion: parts of a scan's latent are restored from their surroundings; what changes was abnormal.

Idea. An autoencoder E, D compresses an image to a small grid of latents, on which diffusion costs little. It
learns first; then it stays as it is, and a denoiser v_θ learns what healthy latents look like. The denoiser sees a
latent whose patches p are noised and whose rest is clean, so that it can tell what belongs into a patch:

    1.  L = Σ w |x − D(z)| / Σ w + R                 R is the penalty of the autoencoder
    2.  z ← (z − μ_z) / σ_z                          unit SD per channel over the foreground
        z_t = √ᾱ_t z + √(1 − ᾱ_t) ε,  ε ~ N(0, 1)     t from 0 to T
        z̃ = p z_t + (1 − p) z                        the rest is shown as it is
        v = √ᾱ_t ε − √(1 − ᾱ_t) z                     what is predicted
        L = mean over images of Σ p (v_θ(z̃, p, t) − v)² / Σ p

Scoring. A checkerboard of n colours gives n complementary sets of patches. Each set is noised part-way, always by
the same ε, and restored by a few DDIM steps; every position is so restored once, from what surrounds its patch:

    ẑ = Σ_k p_k ẑ_k,    x̂ = x + D(ẑ) − D(z),    r = x − x̂ = D(z) − D(ẑ),    latent = √mean_c (z − ẑ)²

The restoration is compared with the decoded latent, not with the image: x − D(ẑ) would count all the fine anatomy
that the autoencoder cannot draw. The denoiser is called n · (steps part-way) times per image.

The autoencoders are those of :mod:`anomaly.models.components.latent_autoencoder`.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; Pinaya et al. 2022,
"Fast Unsupervised Brain Anomaly Detection and Segmentation with Diffusion Models" (part-way noise on the latents of
brains); Behrendt et al. 2023, "Patched Diffusion Models for Unsupervised Anomaly Detection in Brain MRI" (one patch
noised, the rest shown); Salimans & Ho 2022 (v); Song et al. 2021 (DDIM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from monai.networks.utils import pixelshuffle, pixelunshuffle
from pydantic import Field, field_validator
from torch import Tensor, nn

from anomaly.models.base import Evidence, ModelSettings
from anomaly.models.components.diffusion_process import checkerboard
from anomaly.models.components.latent_autoencoder import AutoencoderSettings, Autoencoding, autoencoder
from anomaly.models.components.network import (
    GROUPS,
    NetworkDetector,
    Width,
    apply_mask,
    crop,
    masked_mean,
    pad,
    padded_shape,
    residual,
    target_slice,
)
from anomaly.models.components.random_fields import chance
from anomaly.training.protocols import StepInfo

TIMES = 1000  # T
BETAS = (0.0015, 0.0195)  # of Rombach et al.
BACKGROUND = 0.1  # weight of the background in the autoencoder's loss, so that samples have one
NOISE_SEED = 20220622  # of the noise that scoring adds, the same for every image
DROWNED = 0.6  # share of the way after which little is left of what two images do not share
POOLED = 4  # positions along each axis of an embedding


class LatentDiffusionSettings(AutoencoderSettings):
    """Settings of latent diffusion."""

    family: Literal["latent_diffusion"] = "latent_diffusion"
    autoencoder_share: float = Field(
        0.4, gt=0, lt=1, description="share of the training that the autoencoder learns in; then the denoiser does"
    )
    denoiser_channels: tuple[Width, ...] = Field(
        (64, 128),
        min_length=1,
        description="channels of the denoiser's levels; multiples of 8; attention in the last",
    )
    patch: int = Field(3, ge=1, description="side of a patch, latent positions")
    colours: Literal[2, 4] = Field(2, description="complementary sets of patches, restored one at a time")
    unconditional: float = Field(
        0.1, ge=0, le=1, description="share of the images of which all is noised in training, for sampling"
    )
    ddim_steps: int = Field(4, ge=1, le=TIMES, description="steps of the whole way from noise to latent")
    noise_level: float = Field(0.5, gt=0, le=1, description="share of that way that scoring noises and restores")

    @field_validator("ddim_steps")
    @classmethod
    def _steps_lead_all_the_way(cls, steps: int) -> int:
        if TIMES % steps:
            raise ValueError(f"ddim_steps must divide {TIMES}, or the first would not start from noise")
        return steps


class LatentNetworks(nn.Module):
    """The autoencoder and the denoiser of its latents, which learn one after the other."""

    autoencoder: Autoencoding

    def __init__(self, dims: int, image_channels: int, settings: LatentDiffusionSettings) -> None:
        super().__init__()
        self.autoencoder = autoencoder(dims, image_channels, settings)
        levels = len(settings.denoiser_channels)
        self.denoiser = DiffusionModelUNet(
            dims,
            settings.latent_channels + 1,
            settings.latent_channels,
            num_res_blocks=1,
            channels=settings.denoiser_channels,
            attention_levels=[False] * (levels - 1) + [True],
            norm_num_groups=GROUPS,
            num_head_channels=settings.denoiser_channels[-1],
        )


class LatentDiffusion(NetworkDetector):
    """Residual of a scan whose latent a diffusion model restored patch by patch.

    Attributes
    ----------
    latent_mean, latent_square
        ``(1, C, 1, …)`` mean of the latents and of their squares over the foreground.
    latents_seen
        Number of latent positions they were learnt from.
    """

    family = "latent_diffusion"
    Settings: ClassVar[type[ModelSettings]] = LatentDiffusionSettings
    settings: LatentDiffusionSettings
    network: LatentNetworks
    latent_mean: Tensor
    latent_square: Tensor
    latents_seen: Tensor

    def build(self) -> nn.Module:
        """Return autoencoder and denoiser, and set the time steps and what is known of the latents."""
        settings, dims = self.settings, self.view.spatial_dims
        per_channel = (1, settings.latent_channels) + (1,) * dims
        self.register_buffer("latent_mean", torch.zeros(per_channel))
        self.register_buffer("latent_square", torch.ones(per_channel))
        self.register_buffer("latents_seen", torch.zeros(()))
        self.scheduler = DDIMScheduler(
            TIMES,
            schedule="scaled_linear_beta",
            beta_start=BETAS[0],
            beta_end=BETAS[1],
            prediction_type="v_prediction",
            clip_sample=False,
        )
        self.scheduler.set_timesteps(settings.ddim_steps)
        return LatentNetworks(dims, self.view.channels * settings.space_to_depth**dims, settings)

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape of images that every fold and stage can halve."""
        halvings = len(self.settings.denoiser_channels) - 1
        return padded_shape(self.image_shape, self.voxels_per_position * 2**halvings)

    @property
    def voxels_per_position(self) -> int:
        """Voxels along each axis that share a latent position."""
        return int(self.settings.space_to_depth * 2 ** (len(self.settings.channels) - 1))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """L, the spatial shape of the latents."""
        return tuple(n // self.voxels_per_position for n in self.padded)

    def times(self, share: float) -> list[int]:
        """Return the DDIM time steps over a share of the way, noisiest first.

        They lie one stride apart, as the scheduler's step takes for granted; where they are few, those that it
        would choose itself do not.
        """
        stride, steps = TIMES // self.settings.ddim_steps, max(1, round(share * self.settings.ddim_steps))
        return [k * stride - 1 for k in range(steps, 0, -1)]

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the autoencoder, later the denoiser."""
        part = self.network.denoiser if self._autoencoder_is_done(step, steps) else self.network.autoencoder
        assert isinstance(part, nn.Module)  # noqa: S101 - a Protocol cannot say that it is a module
        return part

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether the denoiser has begun to learn."""
        return step == steps or self._autoencoder_is_done(step - 1, steps)

    def _autoencoder_is_done(self, step: int, steps: int) -> bool:
        return step >= self.settings.autoencoder_share * steps

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the loss of the autoencoder, later that of the denoiser; see the module's docstring."""
        del corrupted
        if self._autoencoder_is_done(at.step, at.steps):
            return self._denoising_loss(images, mask, at.rng)
        return self._autoencoder_loss(images, mask, at.rng)

    def _autoencoder_loss(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        folded, penalty = self.network.autoencoder.learn(self._folded(images), rng)
        error = (self._unfolded(folded) - images).abs().mean(dim=1, keepdim=True)
        reconstruction = masked_mean(error, torch.where(mask, 1.0, BACKGROUND))
        return {"loss": reconstruction + penalty, "reconstruction": reconstruction, "penalty": penalty}

    def _denoising_loss(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        foreground = self._foreground(mask)
        with torch.no_grad():
            latents = self.network.autoencoder.encode(self._folded(images)).float()
            self.learn_scale(latents, foreground)
            z = self._scaled(latents)
        everything = chance(z, self.settings.unconditional, rng)
        patches = everything | (self._random_patches(z, rng) & foreground)
        noise = torch.randn(z.shape, generator=rng, device=z.device)
        times = torch.randint(TIMES, (len(z),), generator=rng, device=z.device)
        noised = torch.where(patches, self.scheduler.add_noise(z, noise, times), z)
        v = self.scheduler.get_velocity(z, noise, times)
        error = ((self.velocity(noised, patches, times) - v) ** 2).mean(dim=1, keepdim=True)
        per_image = (error * patches).flatten(1).sum(1) / patches.flatten(1).sum(1).clamp_min(1)
        return {"loss": per_image.mean(), "latent_sd": self._latent_sd().mean()}

    def velocity(self, z: Tensor, patches: Tensor, times: Tensor) -> Tensor:
        """Return v_θ ``(B, C, *L)`` of latents, their ``patches`` ``(B, 1, *L)`` noised to ``times`` ``(B,)``."""
        v: Tensor = self.network.denoiser(torch.cat([z, patches.float()], dim=1), times)
        return v.float()

    @torch.no_grad()
    def learn_scale(self, latents: Tensor, foreground: Tensor) -> None:
        """Add a batch of latents to what is known of their mean and SD over all foreground positions."""
        n = foreground.sum()
        share = n / (self.latents_seen + n).clamp_min(1)
        axes = [0, *range(2, latents.ndim)]
        for known, values in ((self.latent_mean, latents), (self.latent_square, latents**2)):
            mean = (values * foreground).sum(axes, keepdim=True) / n.clamp_min(1)
            known.lerp_(mean, share)
        self.latents_seen += n

    def restored(self, z: Tensor, foreground: Tensor) -> Tensor:
        """Return scaled latents ``(B, C, *L)``, every patch of the foreground restored from its surroundings."""
        n = self.settings.colours
        colour = self._colours(torch.zeros((1, len(self.latent_shape)), device=z.device))
        patches = torch.cat([(colour == k) & foreground for k in range(n)])
        shown = torch.cat([z] * n)
        times = self.times(self.settings.noise_level)
        start = torch.full((len(shown),), times[0], device=z.device)
        noised = self.scheduler.add_noise(shown, self._fixed_noise(z), start)
        denoised = torch.where(patches, self._denoised(noised, shown, patches, times), 0.0)
        return denoised.reshape(n, *z.shape).sum(0) + torch.where(foreground, 0.0, z)

    def _denoised(self, noised: Tensor, shown: Tensor, patches: Tensor, times: Sequence[int]) -> Tensor:
        """Return the end of the DDIM steps at ``times``, with the latents shown outside the patches."""
        # No buffer of the scheduler's, so it does not move with the model.
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(shown.device)
        for time in times:
            noised = torch.where(patches, noised, shown)
            v = self.velocity(noised, patches, torch.full((len(shown),), time, device=shown.device))
            noised = self.scheduler.step(v, time, noised)[0]
        return torch.where(patches, noised, shown)

    def to_latent(self, images: Tensor) -> Tensor:
        """Return the scaled latents ``(B, C, *L)``."""
        return self._scaled(self.network.autoencoder.encode(self._folded(images)).float())

    def to_image(self, z: Tensor) -> Tensor:
        """Return the images ``(B, C, *S)`` of scaled latents."""
        return self._unfolded(self.network.autoencoder.decode(z * self._latent_sd() + self.latent_mean))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the image with what the restoration changed."""
        z = self.to_latent(images)
        return target_slice(images) - self._drawn_change(z, self.restored(z, self._foreground(mask)))

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return what the restoration changed, in the image and in the latent; see the module's docstring."""
        z = self.to_latent(images)
        foreground = self._foreground(mask)
        restored = self.restored(z, foreground)
        reconstruction = target_slice(images) - self._drawn_change(z, restored)
        distance = ((z - restored) ** 2).mean(dim=1, keepdim=True).sqrt()
        mode = "bilinear" if distance.ndim == 4 else "trilinear"
        moved = crop(F.interpolate(distance, size=self.padded, mode=mode), self.image_shape)
        maps = {"residual": residual(images, reconstruction, mask), "latent": apply_mask(moved, mask)}
        return Evidence(maps, apply_mask(reconstruction, mask), embedding=pooled(z, foreground))

    def _drawn_change(self, z: Tensor, restored: Tensor) -> Tensor:
        """Return D(z) − D(ẑ) ``(B, 1, *S)``."""
        before, after = target_slice(self.to_image(torch.cat([z, restored]))).chunk(2)
        return before - after

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the latent, pooled to a few positions ``(B, C · POOLEDᴰ)``."""
        return pooled(self.to_latent(images), self._foreground(mask))

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return new images ``(n, C, *S)``: all of the latent starts as noise."""
        device = self.latent_mean.device
        shape = (n, self.settings.latent_channels, *self.latent_shape)
        z = torch.randn(shape, generator=rng, device=rng.device).to(device)
        everything = torch.ones((n, 1, *self.latent_shape), dtype=torch.bool, device=device)
        return self.to_image(self._denoised(z, z, everything, self.times(1.0)))

    @torch.no_grad()
    def interpolate(self, first: Tensor, second: Tensor, weight: float) -> Tensor:
        """Return the images ``(B, C, *S)`` at ``weight``, 0 to 1, of the way from some ``(B, C, *S)`` to others.

        The weighted mean of their latents is noised until what is in one of them only has drowned, and restored
        (Ho et al. 2020, section 4.3). The noise is the same all along the way.
        """
        z = torch.lerp(self.to_latent(first), self.to_latent(second), weight)
        times, everything = self.times(DROWNED), torch.ones_like(z[:, :1], dtype=torch.bool)
        start = torch.full((len(z),), times[0], device=z.device)
        noised = self.scheduler.add_noise(z, self._fixed_noise(z), start)
        return self.to_image(self._denoised(noised, z, everything, times))

    def _random_patches(self, z: Tensor, rng: torch.Generator) -> Tensor:
        """Return one colour ``(B, 1, *L)`` of a checkerboard that lies elsewhere in every image."""
        period, places = self.settings.patch * self.settings.colours, (len(z), len(self.latent_shape))
        return self._colours(torch.randint(period, places, generator=rng, device=z.device)) == 0

    def _colours(self, origins: Tensor) -> Tensor:
        edges = [self.settings.patch] * len(self.latent_shape)
        return checkerboard(self.latent_shape, edges, self.settings.colours, origins)

    def _fixed_noise(self, z: Tensor) -> Tensor:
        """Return ε ``(1, C, *L)`` of scoring, the same for every image, on every device."""
        rng = torch.Generator().manual_seed(NOISE_SEED)
        return torch.randn((1, *z.shape[1:]), generator=rng).to(z.device)

    def _latent_sd(self) -> Tensor:
        return (self.latent_square - self.latent_mean**2).clamp_min(1e-8).sqrt()

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean) / self._latent_sd()

    def _foreground(self, mask: Tensor) -> Tensor:
        """Return the latent positions ``(B, 1, *L)`` that hold a voxel of the mask."""
        pool = F.adaptive_max_pool2d if mask.ndim == 4 else F.adaptive_max_pool3d
        return pool(pad(mask.float(), self.padded), self.latent_shape) > 0

    def _folded(self, images: Tensor) -> Tensor:
        folded: Tensor = pixelunshuffle(
            pad(images, self.padded), self.view.spatial_dims, self.settings.space_to_depth
        )
        return folded

    def _unfolded(self, folded: Tensor) -> Tensor:
        images = pixelshuffle(folded.float(), self.view.spatial_dims, self.settings.space_to_depth)
        return crop(images, self.image_shape)


def pooled(z: Tensor, foreground: Tensor) -> Tensor:
    """Return latents ``(B, C, *L)``, 0 outside the foreground, pooled to a few positions ``(B, C · POOLEDᴰ)``."""
    pool = F.adaptive_avg_pool2d if z.ndim == 4 else F.adaptive_avg_pool3d
    return pool(torch.where(foreground, z, 0.0), POOLED).flatten(1)
