"""Latent diffusion: patches of the latent of a scan are restored from their surroundings; abnormal ones change.

Idea. An autoencoder E, D compresses an image to a small grid of latents, where diffusion is cheap. It is trained
first and then frozen. A denoiser v_θ then learns the distribution of healthy latents. Its input is a latent with
noise in the patches p and without noise elsewhere, so that it learns what belongs in a patch:

    1.  L = Σ w |x − D(z)| / Σ w + R                 R is the penalty of the autoencoder
    2.  z ← (z − μ_z) / σ_z                          unit SD per channel over the foreground
        z_t = √ᾱ_t z + √(1 − ᾱ_t) ε,  ε ~ N(0, 1)     t from 0 to T
        z̃ = p z_t + (1 − p) z                        no noise outside the patches
        v = √ᾱ_t ε − √(1 − ᾱ_t) z                     the target of the prediction
        L = mean over images of Σ p (v_θ(z̃, p, t) − v)² / Σ p

Scoring. A checkerboard of n colours gives n complementary sets of patches. Each set gets noise part-way, always the
same ε, and is restored by a few DDIM steps. Every position is thus restored once, from the surroundings of its
patch:

    ẑ = Σ_k p_k ẑ_k,    x̂ = x + D(ẑ) − D(z),    r = x − x̂ = D(z) − D(ẑ),    latent = √mean_c (z − ẑ)²

The restoration is compared with the decoded latent and not with the image, because x − D(ẑ) would also contain the
fine anatomy that the autoencoder cannot reproduce. The denoiser is called n · (steps part-way) times per image.

The autoencoders are those of :mod:`anomaly.models.components.latent_autoencoder`.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; Pinaya et al. 2022,
"Fast Unsupervised Brain Anomaly Detection and Segmentation with Diffusion Models" (part-way noise on the latents of
brains); Behrendt et al. 2023, "Patched Diffusion Models for Unsupervised Anomaly Detection in Brain MRI" (noise in
one patch set, the rest clean); Salimans & Ho 2022 (v); Song et al. 2021 (DDIM).
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

from anomaly.models.base import (
    NORM_GROUPS,
    Evidence,
    ModelSettings,
    NetworkDetector,
    StepInfo,
    Width,
    apply_mask,
    crop,
    masked_mean,
    pad,
    padded_shape,
    residual,
    target_slice,
)
from anomaly.models.components.latent_autoencoder import (
    Autoencoder,
    AutoencoderSettings,
    build_autoencoder,
    patch_colours,
)

TIMESTEPS = 1000  # T
BETA_RANGE = (0.0015, 0.0195)  # first and last β, of Rombach et al.
BACKGROUND_WEIGHT = 0.1  # in the loss of the autoencoder, so that samples have a background
SCORING_SEED = 20220622  # of the noise that scoring adds, the same for every image
INTERPOLATION_NOISE_LEVEL = 0.6  # share of the process that hides what two images do not share
EMBEDDING_SIDE = 4  # positions of an embedding along each axis


class LatentDiffusionSettings(AutoencoderSettings):
    """Settings of latent diffusion."""

    family: Literal["latent_diffusion"] = "latent_diffusion"
    autoencoder_share: float = Field(
        0.4, gt=0, lt=1, description="first share of the training, for the autoencoder; the denoiser has the rest"
    )
    denoiser_channels: tuple[Width, ...] = Field(
        (64, 128),
        min_length=1,
        description="channels of the denoiser's levels; multiples of 8; attention in the last",
    )
    patch_size: int = Field(3, ge=1, description="side of a patch, latent positions")
    patch_sets: Literal[2, 4] = Field(2, description="complementary sets of patches, restored one at a time")
    unconditional_share: float = Field(
        0.1, ge=0, le=1, description="share of the training images that get noise everywhere, for sampling"
    )
    ddim_steps: int = Field(
        4, ge=1, le=TIMESTEPS, description="DDIM steps of the whole process from noise to latent"
    )
    noise_level: float = Field(0.5, gt=0, le=1, description="noise level of scoring, as a share of the process")

    @field_validator("ddim_steps")
    @classmethod
    def _check_steps_divide_timesteps(cls, steps: int) -> int:
        if TIMESTEPS % steps:
            raise ValueError(f"ddim_steps must divide {TIMESTEPS}, or the first would not start from noise")
        return steps


class LatentNetworks(nn.Module):
    """The autoencoder and the denoiser of its latents, trained one after the other."""

    autoencoder: Autoencoder

    def __init__(self, dims: int, image_channels: int, settings: LatentDiffusionSettings) -> None:
        super().__init__()
        self.autoencoder = build_autoencoder(dims, image_channels, settings)
        levels = len(settings.denoiser_channels)
        self.denoiser = DiffusionModelUNet(
            dims,
            settings.latent_channels + 1,
            settings.latent_channels,
            num_res_blocks=1,
            channels=settings.denoiser_channels,
            attention_levels=[False] * (levels - 1) + [True],
            norm_num_groups=NORM_GROUPS,
            num_head_channels=settings.denoiser_channels[-1],
        )


class LatentDiffusion(NetworkDetector):
    """Residual of a scan after patch-wise restoration of its latent.

    Attributes
    ----------
    latent_mean, latent_square
        ``(1, C, 1, …)`` mean of the latents and of their squares over the foreground.
    latents_seen
        Number of latent positions that the means are over.
    """

    family = "latent_diffusion"
    Settings: ClassVar[type[ModelSettings]] = LatentDiffusionSettings
    settings: LatentDiffusionSettings
    network: LatentNetworks
    latent_mean: Tensor
    latent_square: Tensor
    latents_seen: Tensor

    def build(self) -> nn.Module:
        """Return autoencoder and denoiser; set up the scheduler and the latent statistics."""
        settings, dims = self.settings, self.view.spatial_dims
        per_channel = (1, settings.latent_channels) + (1,) * dims
        self.register_buffer("latent_mean", torch.zeros(per_channel))
        self.register_buffer("latent_square", torch.ones(per_channel))
        self.register_buffer("latents_seen", torch.zeros(()))
        self.scheduler = DDIMScheduler(
            TIMESTEPS,
            schedule="scaled_linear_beta",
            beta_start=BETA_RANGE[0],
            beta_end=BETA_RANGE[1],
            prediction_type="v_prediction",
            clip_sample=False,
        )
        self.scheduler.set_timesteps(settings.ddim_steps)
        return LatentNetworks(dims, self.view.channels * settings.space_to_depth**dims, settings)

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape of images, padded until every stage can halve them."""
        halvings = len(self.settings.denoiser_channels) - 1
        return padded_shape(self.image_shape, self.voxels_per_position * 2**halvings)

    @property
    def voxels_per_position(self) -> int:
        """Voxels per latent position along each axis."""
        return int(self.settings.space_to_depth * 2 ** (len(self.settings.channels) - 1))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """L, the spatial shape of the latents."""
        return tuple(n // self.voxels_per_position for n in self.padded)

    def ddim_timesteps(self, noise_level: float) -> list[int]:
        """Return the DDIM timesteps up to a noise level, noisiest first.

        They are one stride apart, as the ``step`` of MONAI's scheduler assumes. The timesteps that the scheduler
        chooses for few steps are not.
        """
        stride, steps = TIMESTEPS // self.settings.ddim_steps, max(1, round(noise_level * self.settings.ddim_steps))
        return [k * stride - 1 for k in range(steps, 0, -1)]

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the autoencoder in the first phase, then the denoiser."""
        part = self.network.denoiser if self._autoencoder_is_done(step, steps) else self.network.autoencoder
        assert isinstance(part, nn.Module)  # noqa: S101 - a Protocol cannot say that it is a module
        return part

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether the training of the denoiser has begun."""
        return step == steps or self._autoencoder_is_done(step - 1, steps)

    def _autoencoder_is_done(self, step: int, steps: int) -> bool:
        return step >= self.settings.autoencoder_share * steps

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the loss of the part in training; see the module's docstring."""
        del corrupted
        if self._autoencoder_is_done(step_info.step, step_info.steps):
            return self._denoising_loss(images, mask, step_info.rng)
        return self._autoencoder_loss(images, mask, step_info.rng)

    def _autoencoder_loss(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        output, penalty = self.network.autoencoder.training_pass(self._space_to_depth(images), rng)
        error = (self._depth_to_space(output) - images).abs().mean(dim=1, keepdim=True)
        reconstruction = masked_mean(error, torch.where(mask, 1.0, BACKGROUND_WEIGHT))
        return {"loss": reconstruction + penalty, "reconstruction": reconstruction, "penalty": penalty}

    def _denoising_loss(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        foreground = self._foreground(mask)
        with torch.no_grad():
            latents = self.network.autoencoder.encode(self._space_to_depth(images)).float()
            self.update_statistics(latents, foreground)
            z = self._standardise(latents)
        n = len(z)
        everywhere = (
            torch.rand((n, *[1] * (z.ndim - 1)), generator=rng, device=z.device) < self.settings.unconditional_share
        )
        patches = everywhere | (self._random_patches(z, rng) & foreground)
        noise = torch.randn(z.shape, generator=rng, device=z.device)
        t = torch.randint(TIMESTEPS, (n,), generator=rng, device=z.device)
        noisy = torch.where(patches, self.scheduler.add_noise(z, noise, t), z)
        v = self.scheduler.get_velocity(z, noise, t)
        error = ((self.velocity(noisy, patches, t) - v) ** 2).mean(dim=1, keepdim=True)
        image_loss = (error * patches).flatten(1).sum(1) / patches.flatten(1).sum(1).clamp_min(1)
        return {"loss": image_loss.mean(), "latent_sd": self._latent_sd().mean()}

    def velocity(self, z: Tensor, patches: Tensor, t: Tensor) -> Tensor:
        """Return v_θ ``(B, C, *L)`` for latents with noise in ``patches`` ``(B, 1, *L)`` at timesteps ``(B,)``."""
        v: Tensor = self.network.denoiser(torch.cat([z, patches.float()], dim=1), t)
        return v.float()

    @torch.no_grad()
    def update_statistics(self, latents: Tensor, foreground: Tensor) -> None:
        """Update the mean and the mean square of latents over the foreground with a batch."""
        n = foreground.sum()
        share = n / (self.latents_seen + n).clamp_min(1)
        axes = [0, *range(2, latents.ndim)]
        for average, values in ((self.latent_mean, latents), (self.latent_square, latents**2)):
            batch_mean = (values * foreground).sum(axes, keepdim=True) / n.clamp_min(1)
            average.lerp_(batch_mean, share)
        self.latents_seen += n

    def restore(self, z: Tensor, foreground: Tensor) -> Tensor:
        """Return standardised latents ``(B, C, *L)`` with every foreground patch restored from its surroundings."""
        n = self.settings.patch_sets
        colour = self._colours(torch.zeros((1, len(self.latent_shape)), device=z.device))
        patches = torch.cat([(colour == k) & foreground for k in range(n)])
        clean = torch.cat([z] * n)
        timesteps = self.ddim_timesteps(self.settings.noise_level)
        first = torch.full((len(clean),), timesteps[0], device=z.device)
        noisy = self.scheduler.add_noise(clean, self._scoring_noise(z), first)
        restored = torch.where(patches, self._ddim(noisy, clean, patches, timesteps), 0.0)
        return restored.reshape(n, *z.shape).sum(0) + torch.where(foreground, 0.0, z)

    def _ddim(self, noisy: Tensor, clean: Tensor, patches: Tensor, timesteps: Sequence[int]) -> Tensor:
        """Denoise latents inside the patches by DDIM; outside they stay ``clean``."""
        # The scheduler holds a plain tensor instead of a buffer, so it does not move with the model.
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(clean.device)
        for t in timesteps:
            noisy = torch.where(patches, noisy, clean)
            v = self.velocity(noisy, patches, torch.full((len(clean),), t, device=clean.device))
            noisy = self.scheduler.step(v, t, noisy)[0]
        return torch.where(patches, noisy, clean)

    def encode_latent(self, images: Tensor) -> Tensor:
        """Return the standardised latents ``(B, C, *L)`` of images."""
        return self._standardise(self.network.autoencoder.encode(self._space_to_depth(images)).float())

    def decode_latent(self, z: Tensor) -> Tensor:
        """Return the images ``(B, C, *S)`` of standardised latents."""
        return self._depth_to_space(self.network.autoencoder.decode(z * self._latent_sd() + self.latent_mean))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the image plus the change by the restoration."""
        z = self.encode_latent(images)
        return target_slice(images) - self._image_change(z, self.restore(z, self._foreground(mask)))

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the change by the restoration, in the image and in the latent; see the module's docstring."""
        del covariates
        z = self.encode_latent(images)
        foreground = self._foreground(mask)
        restored = self.restore(z, foreground)
        reconstruction = target_slice(images) - self._image_change(z, restored)
        distance = ((z - restored) ** 2).mean(dim=1, keepdim=True).sqrt()
        mode = "bilinear" if distance.ndim == 4 else "trilinear"
        upsampled = crop(F.interpolate(distance, size=self.padded, mode=mode), self.image_shape)
        maps = {"residual": residual(images, reconstruction, mask), "latent": apply_mask(upsampled, mask)}
        return Evidence(maps, apply_mask(reconstruction, mask), embedding=pool_latent(z, foreground))

    def _image_change(self, z: Tensor, restored: Tensor) -> Tensor:
        """Return D(z) − D(ẑ) ``(B, 1, *S)``."""
        before, after = target_slice(self.decode_latent(torch.cat([z, restored]))).chunk(2)
        return before - after

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the latent, pooled to a few positions ``(B, C · EMBEDDING_SIDEᴰ)``."""
        return pool_latent(self.encode_latent(images), self._foreground(mask))

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return new images ``(n, C, *S)`` from latents that start as pure noise."""
        del covariates
        device = self.latent_mean.device
        shape = (n, self.settings.latent_channels, *self.latent_shape)
        z = torch.randn(shape, generator=rng, device=rng.device).to(device)
        everywhere = torch.ones((n, 1, *self.latent_shape), dtype=torch.bool, device=device)
        return self.decode_latent(self._ddim(z, z, everywhere, self.ddim_timesteps(1.0)))

    @torch.no_grad()
    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return images ``(B, C, *S)`` interpolated between ``first`` (weight 0) and ``second`` (weight 1).

        Noise is added to the weighted mean of the two latents until what they do not share is hidden; then it is
        denoised (Ho et al. 2020, section 4.3). The noise is the same for all weights.
        """
        del covariates
        z = torch.lerp(self.encode_latent(first), self.encode_latent(second), weight)
        timesteps, everywhere = (
            self.ddim_timesteps(INTERPOLATION_NOISE_LEVEL),
            torch.ones_like(z[:, :1], dtype=torch.bool),
        )
        first_timestep = torch.full((len(z),), timesteps[0], device=z.device)
        noisy = self.scheduler.add_noise(z, self._scoring_noise(z), first_timestep)
        return self.decode_latent(self._ddim(noisy, z, everywhere, timesteps))

    def _random_patches(self, z: Tensor, rng: torch.Generator) -> Tensor:
        """Return the patches of one colour ``(B, 1, *L)``, of a randomly placed checkerboard per image."""
        period, shape = self.settings.patch_size * self.settings.patch_sets, (len(z), len(self.latent_shape))
        return self._colours(torch.randint(period, shape, generator=rng, device=z.device)) == 0

    def _colours(self, origins: Tensor) -> Tensor:
        return patch_colours(self.latent_shape, self.settings.patch_size, self.settings.patch_sets, origins)

    def _scoring_noise(self, z: Tensor) -> Tensor:
        """Return ε ``(1, C, *L)`` of scoring: the same for every image and on every device."""
        rng = torch.Generator().manual_seed(SCORING_SEED)
        return torch.randn((1, *z.shape[1:]), generator=rng).to(z.device)

    def _latent_sd(self) -> Tensor:
        return (self.latent_square - self.latent_mean**2).clamp_min(1e-8).sqrt()

    def _standardise(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean) / self._latent_sd()

    def _foreground(self, mask: Tensor) -> Tensor:
        """Return the latent positions ``(B, 1, *L)`` that contain a voxel of the mask."""
        pool = F.adaptive_max_pool2d if mask.ndim == 4 else F.adaptive_max_pool3d
        return pool(pad(mask.float(), self.padded), self.latent_shape) > 0

    def _space_to_depth(self, images: Tensor) -> Tensor:
        channels: Tensor = pixelunshuffle(
            pad(images, self.padded), self.view.spatial_dims, self.settings.space_to_depth
        )
        return channels

    def _depth_to_space(self, channels: Tensor) -> Tensor:
        images = pixelshuffle(channels.float(), self.view.spatial_dims, self.settings.space_to_depth)
        return crop(images, self.image_shape)


def pool_latent(z: Tensor, foreground: Tensor) -> Tensor:
    """Return latents ``(B, C, *L)``, 0 outside the foreground, pooled to ``(B, C · EMBEDDING_SIDEᴰ)``."""
    pool = F.adaptive_avg_pool2d if z.ndim == 4 else F.adaptive_avg_pool3d
    return pool(torch.where(foreground, z, 0.0), EMBEDDING_SIDE).flatten(1)
