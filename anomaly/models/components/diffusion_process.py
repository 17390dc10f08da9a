"""What diffusion models share: the chain that turns images into noise. A building block, not a family.

Forward, in small steps or in one from the start (β_t the schedule, ᾱ_t = Π_{s ≤ t} (1 − β_s)):

    q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t)
    q(x_t | x_0)     = N(√ᾱ_t x_0, 1 − ᾱ_t),    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε

A network sees x_t and t, and predicts ε, x_0 or v = √ᾱ_t ε − √(1 − ᾱ_t) x_0; any one of them gives the others. The
way back is deterministic and may take few steps: from t to an earlier t′, with the predicted x̂_0 and ε̂,

    x_{t′} = √ᾱ_{t′} x̂_0 + √(1 − ᾱ_{t′}) ε̂

Source: Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models"; Nichol & Dhariwal 2021 (the cosine
schedule); Song, Meng & Ermon 2021, "Denoising diffusion implicit models" (the way back); Salimans & Ho 2022 (v).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from anomaly.models.components.random_fields import host_generator, smooth_field
from anomaly.models.components.simplex_noise import simplex_field

Prediction = Literal["epsilon", "sample", "v"]
Schedule = Literal["linear", "cosine"]
Noise = Literal["gaussian", "coarse", "simplex"]

FULL_LENGTH = 1000  # timesteps that the published β of the linear schedule are for
PERSISTENCE = 0.8  # of the octaves of simplex noise, as in AnoDDPM
HOST_STREAM = 2


class DiffusionProcess(nn.Module):
    """The chain of one schedule, for a network that predicts one of ε, x_0 and v.

    MONAI's schedulers step a whole batch from one timestep, along the whole chain; this takes a timestep per image,
    so that several levels of noise are undone side by side, and starts part-way.

    Attributes
    ----------
    alpha_bar
        ᾱ_0 = 1 to ᾱ_T, ``(T + 1,)``. Moves with the module and is no part of its state.
    """

    alpha_bar: Tensor

    def __init__(self, timesteps: int, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.timesteps, self.prediction = timesteps, prediction
        products = _scheduler(timesteps, schedule).alphas_cumprod
        self.register_buffer("alpha_bar", torch.cat([torch.ones(1), products]), persistent=False)

    def noised(self, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t of x_0 = ``start`` and ε = ``noise``, ``(B, …)``, for timesteps ``(B,)``."""
        signal, spread = self._coefficients(start, t)
        return signal * start + spread * noise

    def target(self, start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the network should predict: ε, x_0 or v."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return start
        signal, spread = self._coefficients(start, t)
        return signal * noise - spread * start

    def solved(self, output: Tensor, noised: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂_0 and ε̂ that belong to a prediction for x_t = ``noised``; t is 1 or more."""
        signal, spread = self._coefficients(noised, t)
        if self.prediction == "epsilon":
            return (noised - spread * output) / signal, output
        if self.prediction == "sample":
            return output, (noised - signal * output) / spread
        return signal * noised - spread * output, spread * noised + signal * output

    def timesteps_back(self, first: Tensor, steps: int) -> Tensor:
        """Return the timesteps ``(steps + 1, B)`` from ``first`` ``(B,)`` down to 0, evenly spaced."""
        shares = torch.linspace(1, 0, steps + 1, device=first.device, dtype=torch.float64)
        return (shares[:, None] * first).round().long()

    def _coefficients(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ_t and √(1 − ᾱ_t) of each image, to broadcast over ``like``."""
        alpha_bar = self.alpha_bar[t].reshape(-1, *[1] * (like.ndim - 1))
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def _scheduler(timesteps: int, schedule: Schedule) -> DDPMScheduler:
    if schedule == "cosine":
        return DDPMScheduler(timesteps, schedule="cosine")
    larger = FULL_LENGTH / timesteps  # steps of a short chain are larger, so that it too ends in noise
    return DDPMScheduler(timesteps, schedule="linear_beta", beta_start=1e-4 * larger, beta_end=2e-2 * larger)


def noise_field(
    kind: Noise, batch: int, shape: Sequence[int], grain: Sequence[float], octaves: int, rng: torch.Generator
) -> Tensor:
    """Return noise ``(batch, 1, *shape)`` of mean 0 and SD 1.

    Parameters
    ----------
    kind
        ``gaussian``: independent voxels. ``coarse``: smooth, from independent nodes (Kascenas et al. 2022).
        ``simplex``: octaves of simplex noise (Wyatt et al. 2022).
    grain
        Samples between nodes (coarse) or lattice points of the first octave (simplex) along each axis.
    octaves
        Of simplex noise.
    rng
        The noise is on its device.
    """
    if kind == "gaussian":
        return torch.randn((batch, 1, *shape), generator=rng, device=rng.device)
    if kind == "simplex":
        return simplex_field(batch, shape, grain, rng, octaves, PERSISTENCE)
    return _coarse_field(batch, shape, grain, rng)


def _coarse_field(batch: int, shape: Sequence[int], grain: Sequence[float], rng: torch.Generator) -> Tensor:
    """Return smooth noise whose nodes lie anywhere, the same for all images of the batch."""
    room = [math.ceil(size) for size in grain]
    field = smooth_field(batch, [n + more for n, more in zip(shape, room, strict=True)], grain, rng)
    starts = host_generator(rng, HOST_STREAM).integers(0, [more + 1 for more in room])
    for axis, (start, n) in enumerate(zip(starts.tolist(), shape, strict=True), start=2):
        field = field.narrow(axis, start, n)
    flat = field.flatten(1)
    flat = (flat - flat.mean(dim=1, keepdim=True)) / flat.std(dim=1, keepdim=True).clamp_min(1e-6)
    return flat.reshape(field.shape)
