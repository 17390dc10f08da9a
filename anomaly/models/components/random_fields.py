"""Random numbers as tensors: one number per image, and smooth fields interpolated from a coarse grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


def host_generator(rng: torch.Generator, stream: int) -> np.random.Generator:
    """Return a NumPy generator for the few random numbers that Python code needs.

    Reading a number from ``rng`` would wait for the GPU.

    Parameters
    ----------
    rng
        Its initial seed is the seed.
    stream
        Generators of different streams are independent.
    """
    return np.random.default_rng([rng.initial_seed(), stream])


def uniform(like: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Return one number per image ``(B, 1, 1, …)`` from U(low, high), shaped to broadcast over ``like``."""
    shape = (like.shape[0],) + (1,) * (like.ndim - 1)
    return torch.rand(shape, generator=rng, device=like.device) * (high - low) + low


def bernoulli(like: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Return one bool per image ``(B, 1, 1, …)``, true with the given probability."""
    return uniform(like, 0.0, 1.0, rng) < probability


def smooth_field(
    batch: int, shape: Sequence[int], spacing: Sequence[float], rng: torch.Generator, channels: int = 1
) -> Tensor:
    """Return smooth noise ``(batch, channels, *shape)``: white noise on a coarse grid, linearly upsampled.

    It is standard normal at the nodes of the coarse grid, about ``spacing`` samples apart along each axis.
    Source: Kascenas et al. 2022, "Denoising autoencoders for unsupervised anomaly detection in brain MRI".
    """
    nodes = [max(2, round(n / s) + 1) for n, s in zip(shape, spacing, strict=True)]
    return upsample(torch.randn((batch, channels, *nodes), generator=rng, device=rng.device), shape)


def upsample(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``(B, C, *coarse)`` linearly interpolated to ``(B, C, *shape)``; the corner samples are aligned.

    One small matrix product per axis is several times faster for volumes than torch's trilinear interpolation. If
    the first of three axes does not change, each slice along it is interpolated in 2D.
    """
    if len(shape) == 3 and coarse.shape[2] == shape[0]:
        slices = F.interpolate(coarse.flatten(1, 2), size=tuple(shape[1:]), mode="bilinear", align_corners=True)
        return slices.reshape(*coarse.shape[:2], *shape)
    for axis in reversed(range(2, coarse.ndim)):
        current, length = coarse.shape, shape[axis - 2]
        if current[axis] != length:
            weights = _linear_weights(current[axis], length, coarse.device)
            if axis == coarse.ndim - 1:
                coarse = (coarse.reshape(-1, current[axis]) @ weights.T).reshape(*current[:axis], length)
            else:
                columns = coarse.reshape(math.prod(current[:axis]), current[axis], -1)
                coarse = (weights @ columns).reshape(*current[:axis], length, *current[axis + 1 :])
    return coarse


def sample(images: Tensor, positions: Tensor) -> Tensor:
    """Return images ``(B, C, *S)`` linearly interpolated at positions ``(B, D, *S)`` in voxels; 0 outside.

    On a CPU, torch samples images many times faster than volumes. The slices of a volume are therefore stacked into
    one tall image, with rows of zeros between them. It is sampled in the slice below and in the slice above each
    position, and the two samples are interpolated.
    """
    if images.ndim == 4:
        rows, columns = positions.unbind(1)
        grid = _grid(rows, columns, images.shape[2], images.shape[3])
        return F.grid_sample(images, grid, align_corners=False)
    slices, rows, columns = positions.unbind(1)
    padded = F.pad(images, (0, 0, 0, 1, 1, 1))
    below, height = slices.floor(), padded.shape[3]
    tall_rows = rows.clamp(-1, height - 1).add_(below + 1, alpha=height)
    grid = _grid(tall_rows, columns, (padded.shape[2] - 1) * height, padded.shape[4]).flatten(1, 2)
    low, high = (
        F.grid_sample(part.flatten(2, 3), grid, align_corners=False).reshape(images.shape)
        for part in (padded[:, :, :-1], padded[:, :, 1:])
    )
    return torch.lerp(low, high, (slices - below)[:, None])


def _grid(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return positions ``(B, *S, 2)`` in the convention of grid_sample: columns first, image edges at -1 and 1."""
    grid = rows.new_empty((*rows.shape, 2))
    torch.mul(columns, 2 / width, out=grid[..., 0]).add_(1 / width - 1)
    torch.mul(rows, 2 / height, out=grid[..., 1]).add_(1 / height - 1)
    return grid


def _linear_weights(nodes: int, length: int, device: torch.device) -> Tensor:
    """Return the ``(length, nodes)`` matrix of linear interpolation."""
    positions = torch.linspace(0, nodes - 1, length, device=device)
    return (1 - (positions[:, None] - torch.arange(nodes, device=device)).abs()).clamp_min(0)
