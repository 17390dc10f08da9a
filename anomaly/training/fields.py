"""Random numbers as tensors: one number per image, and smooth fields that are cheap because they start coarse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def uniform(like: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Return one number per image ``(B, 1, 1, …)`` from U(low, high), shaped to broadcast over ``like``."""
    shape = (like.shape[0],) + (1,) * (like.ndim - 1)
    return torch.rand(shape, generator=rng, device=like.device) * (high - low) + low


def chance(like: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Return one bool per image ``(B, 1, 1, …)``, true with the given probability."""
    return uniform(like, 0.0, 1.0, rng) < probability


def smooth_field(
    batch: int, shape: Sequence[int], spacing: float | Sequence[float], rng: torch.Generator, channels: int = 1
) -> Tensor:
    """Return smooth noise ``(batch, channels, *shape)``, standard normal at nodes ``spacing`` voxels apart.

    White noise on a coarse grid, linearly upsampled (Kascenas et al. 2022, "Denoising autoencoders for
    unsupervised anomaly detection in brain MRI"); the cost is one interpolation whatever the scale.
    """
    spacings = [spacing] * len(shape) if isinstance(spacing, float | int) else spacing
    nodes = [max(2, round(n / s) + 1) for n, s in zip(shape, spacings, strict=True)]
    coarse = torch.randn((batch, channels, *nodes), generator=rng, device=rng.device)
    return upsample(coarse, shape)


def upsample(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``(B, C, *coarse)`` linearly interpolated to ``(B, C, *shape)``."""
    return F.interpolate(coarse, size=tuple(shape), mode=_MODES[len(shape)], align_corners=True)
