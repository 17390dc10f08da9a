"""Diffusion models: the forward process, DDIM steps, noise fields, the U-Net and patch masks. A building block.

The forward process adds Gaussian noise in small steps, or in one step from the start (β_t is the schedule,
ᾱ_t = Π_{s ≤ t} (1 − β_s)):

    q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t)
    q(x_t | x_0)     = N(√ᾱ_t x_0, 1 − ᾱ_t),    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε

A network gets x_t and t, and predicts ε, x_0 or v = √ᾱ_t ε − √(1 − ᾱ_t) x_0; each of them determines the others.
The reverse process of DDIM is deterministic and may take few steps. A step from t to an earlier t′, with the
predicted x̂_0 and ε̂, is

    x_{t′} = √ᾱ_{t′} x̂_0 + √(1 − ᾱ_{t′}) ε̂

Source: Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models"; Nichol & Dhariwal 2021 (cosine
schedule); Song, Meng & Ermon 2021, "Denoising diffusion implicit models" (DDIM); Salimans & Ho 2022 (v); Behrendt
et al. 2023, "Guided reconstruction with conditioned diffusion models" (the U-Net with a context code).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.networks.nets import DiffusionModelUNet, Regressor
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from anomaly.models.base import NORM_GROUPS, crop, pad, padded_shape
from anomaly.models.components.random_fields import host_generator, smooth_field
from anomaly.models.components.simplex_noise import simplex_field
from anomaly.models.components.space_to_depth import depth_to_space, space_to_depth

Prediction = Literal["epsilon", "sample", "v"]
Schedule = Literal["linear", "cosine"]
Noise = Literal["gaussian", "coarse", "simplex"]

REFERENCE_TIMESTEPS = 1000  # the published β of the linear schedule are for this number
SIMPLEX_PERSISTENCE = 0.8  # strength of an octave relative to the previous one, as in AnoDDPM
HOST_STREAM = 2


class DiffusionProcess(nn.Module):
    """The forward process and DDIM step of one schedule, for a network that predicts ε, x_0 or v.

    The schedulers of MONAI use one timestep for a whole batch and run the whole process. This class takes one
    timestep per image, so that several noise levels are denoised in one batch, and can start part-way.

    Attributes
    ----------
    alpha_bar
        ᾱ_0 = 1 to ᾱ_T, ``(T + 1,)``. A non-persistent buffer.
    """

    alpha_bar: Tensor

    def __init__(self, timesteps: int, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.timesteps, self.prediction = timesteps, prediction
        products = _scheduler(timesteps, schedule).alphas_cumprod
        self.register_buffer("alpha_bar", torch.cat([torch.ones(1), products]), persistent=False)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for x_0 and ε = ``noise``, both ``(B, …)``, at timesteps ``(B,)``."""
        signal_scale, noise_scale = self._coefficients(x0, t)
        return signal_scale * x0 + noise_scale * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the network should predict: ε, x_0 or v."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        signal_scale, noise_scale = self._coefficients(x0, t)
        return signal_scale * noise - noise_scale * x0

    def predict_x0_and_noise(self, output: Tensor, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂_0 and ε̂ from the output of the network for x_t = ``noisy``; t is at least 1."""
        signal_scale, noise_scale = self._coefficients(noisy, t)
        if self.prediction == "epsilon":
            return (noisy - noise_scale * output) / signal_scale, output
        if self.prediction == "sample":
            return output, (noisy - signal_scale * output) / noise_scale
        return signal_scale * noisy - noise_scale * output, noise_scale * noisy + signal_scale * output

    def ddim_timesteps(self, first: Tensor, steps: int) -> Tensor:
        """Return evenly spaced timesteps ``(steps + 1, B)`` from ``first`` ``(B,)`` down to 0."""
        shares = torch.linspace(1, 0, steps + 1, device=first.device, dtype=torch.float64)
        return (shares[:, None] * first).round().long()

    def _coefficients(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_t and √(1 − ᾱ_t) of each image, shaped to broadcast over ``like``."""
        alpha_bar = self.alpha_bar[t].reshape(-1, *[1] * (like.ndim - 1))
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def _scheduler(timesteps: int, schedule: Schedule) -> DDPMScheduler:
    if schedule == "cosine":
        return DDPMScheduler(timesteps, schedule="cosine")
    # A process of fewer timesteps takes larger steps, so that it also ends in pure noise.
    step_size = REFERENCE_TIMESTEPS / timesteps
    return DDPMScheduler(timesteps, schedule="linear_beta", beta_start=1e-4 * step_size, beta_end=2e-2 * step_size)


class GuidedUNet(nn.Module):
    """MONAI's diffusion U-Net with space-to-depth and, optionally, a context code of the clean image.

    An encoder computes the code from the clean image. It is added to the embedding of the timestep and so reaches
    every residual block (Behrendt et al. 2023).

    Parameters
    ----------
    shape
        S, the spatial shape of the images.
    in_channels, out_channels
        Channels of the input and of the prediction; clean images have ``out_channels``.
    channels
        Channels of the levels, multiples of 8.
    factor
        Factor of space-to-depth along each axis.
    code_size
        Length of the context code; 0 = no code.
    """

    def __init__(
        self,
        shape: Sequence[int],
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        factor: int,
        code_size: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.factor, dims = shape, factor, len(shape)
        smallest = factor * 2 ** (len(channels) - 1)
        self.padded = padded_shape(shape, smallest, minimum=2 * smallest)
        unet: Any = DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=in_channels * factor**dims,
            out_channels=out_channels * factor**dims,
            num_res_blocks=1,
            channels=channels,
            attention_levels=[False] * len(channels),  # MONAI still adds attention at the coarsest level
            norm_num_groups=NORM_GROUPS,
            num_head_channels=channels[-1],
            num_class_embeds=1 if code_size else None,
        )
        self.encoder: nn.Module | None = None
        if code_size:
            # Replaces the class embedding of MONAI.
            unet.class_embedding = nn.Linear(code_size, 4 * channels[0])
            self.encoder = Regressor(
                in_shape=(out_channels * factor**dims, *(n // factor for n in self.padded)),
                out_shape=(code_size,),
                channels=channels,
                strides=[2] * len(channels),
                num_res_units=0,
                norm=("group", {"num_groups": NORM_GROUPS}),
            )
        self.unet: nn.Module = unet
        if dims == 2:
            # A quarter faster on a CPU. The type annotations of torch lack this argument.
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor, t: Tensor, code: Tensor | None = None) -> Tensor:
        """Return the prediction ``(B, out_channels, *S)`` for ``(B, in_channels, *S)`` at timesteps ``(B,)``."""
        output = self.unet(self._space_to_depth(inputs), t, class_labels=code).float()
        return crop(depth_to_space(output, self.factor), self.shape)

    def encode_context(self, clean: Tensor) -> Tensor | None:
        """Return the context code ``(B, code_size)`` of clean images; None without an encoder."""
        if self.encoder is None:
            return None
        code: Tensor = self.encoder(self._space_to_depth(clean)).float()
        return code

    def _space_to_depth(self, images: Tensor) -> Tensor:
        return space_to_depth(pad(images, self.padded), self.factor)


def noise_field(
    kind: Noise, batch: int, shape: Sequence[int], grain: Sequence[float], octaves: int, rng: torch.Generator
) -> Tensor:
    """Return noise ``(batch, 1, *shape)`` of mean 0 and SD 1.

    Parameters
    ----------
    kind
        ``gaussian``: independent voxels. ``coarse``: smooth, interpolated between independent nodes (Kascenas et
        al. 2022). ``simplex``: octaves of simplex noise (Wyatt et al. 2022).
    grain
        Voxels between nodes (coarse) or between lattice points of the first octave (simplex), along each axis.
    octaves
        Number of octaves of simplex noise.
    rng
        The noise is on the device of this generator.
    """
    if kind == "gaussian":
        return torch.randn((batch, 1, *shape), generator=rng, device=rng.device)
    if kind == "simplex":
        return simplex_field(batch, shape, grain, rng, octaves, SIMPLEX_PERSISTENCE)
    return _coarse_field(batch, shape, grain, rng)


def _coarse_field(batch: int, shape: Sequence[int], grain: Sequence[float], rng: torch.Generator) -> Tensor:
    """Return smooth noise with randomly placed nodes; the placement is the same for all images of the batch."""
    margins = [math.ceil(size) for size in grain]
    field = smooth_field(batch, [n + margin for n, margin in zip(shape, margins, strict=True)], grain, rng)
    starts = host_generator(rng, HOST_STREAM).integers(0, [margin + 1 for margin in margins])
    for axis, (start, n) in enumerate(zip(starts.tolist(), shape, strict=True), start=2):
        field = field.narrow(axis, start, n)
    flat = field.flatten(1)
    flat = (flat - flat.mean(dim=1, keepdim=True)) / flat.std(dim=1, keepdim=True).clamp_min(1e-6)
    return flat.reshape(field.shape)


def checkerboard(shape: Sequence[int], patch: Sequence[float], colours: int, origins: Tensor) -> Tensor:
    """Return the colour, 0 to ``colours`` − 1, of the patch that contains each voxel, int64 ``(B, 1, *shape)``.

    Patches that share a face have different colours.

    Parameters
    ----------
    shape
        Spatial shape of the images (2D) or volumes (3D), in voxels.
    patch
        Edge lengths of a patch along each axis, in voxels; they need not be whole numbers.
    colours
        1 (a single set of patches), 2 or 4. With 4 in 2D, patches of one colour do not touch at corners either.
    origins
        ``(B, D)`` position of the first voxel of each image on the checkerboard, in voxels.
    """
    strides = (1, colours // 2, colours - 1)
    total = torch.zeros((len(origins), 1, *[1] * len(shape)), dtype=torch.long, device=origins.device)
    for axis, (n, edge) in enumerate(zip(shape, patch, strict=True)):
        cells = ((torch.arange(n, device=origins.device) + origins[:, axis : axis + 1]) / edge).floor().long()
        across = [n if other == axis else 1 for other in range(len(shape))]
        total = total + strides[axis] * cells.reshape(-1, 1, *across)
    return total % colours
