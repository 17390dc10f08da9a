"""Random numbers as tensors: one number per image, and smooth fields that are cheap because they start coarse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


def host_generator(rng: torch.Generator, stream: int) -> np.random.Generator:
    """Return a generator of the few numbers that the program itself must know: asking ``rng`` would wait for a GPU.

    Seeded as ``rng`` was; generators of other streams are independent.
    """
    return np.random.default_rng([rng.initial_seed(), stream])


def uniform(like: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Return one number per image ``(B, 1, 1, …)`` from U(low, high), shaped to broadcast over ``like``."""
    shape = (like.shape[0],) + (1,) * (like.ndim - 1)
    return torch.rand(shape, generator=rng, device=like.device) * (high - low) + low


def bernoulli(like: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Return one bool per image ``(B, 1, 1, …)``, true with the given probability."""
    return uniform(like, 0.0, 1.0, rng) < probability


def foreground_mask(values: Tensor) -> Tensor:
    """Return 1 where values are not 0, else 0, as floats; several times faster than by way of booleans."""
    return values.sign().abs_()


def smooth_field(
    batch: int, shape: Sequence[int], spacing: Sequence[float], rng: torch.Generator, channels: int = 1
) -> Tensor:
    """Return smooth noise ``(batch, channels, *shape)``, standard normal at nodes ``spacing`` samples apart.

    White noise on a coarse grid, linearly upsampled (Kascenas et al. 2022, "Denoising autoencoders for
    unsupervised anomaly detection in brain MRI"); the cost hardly depends on the scale.
    """
    nodes = [max(2, round(n / s) + 1) for n, s in zip(shape, spacing, strict=True)]
    return upsample(torch.randn((batch, channels, *nodes), generator=rng, device=rng.device), shape)


def upsample(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``(B, C, *coarse)`` linearly interpolated to ``(B, C, *shape)``; corners stay corners.

    One small matrix product per axis that grows: for volumes several times faster than trilinear interpolation.
    A slab whose slices stay is interpolated slice by slice.
    """
    if len(shape) == 3 and coarse.shape[2] == shape[0]:
        slices = F.interpolate(coarse.flatten(1, 2), size=tuple(shape[1:]), mode="bilinear", align_corners=True)
        return slices.reshape(*coarse.shape[:2], *shape)
    for axis in reversed(range(2, coarse.ndim)):
        have, length = coarse.shape, shape[axis - 2]
        if have[axis] != length:
            weights = _linear_weights(have[axis], length, coarse.device)
            if axis == coarse.ndim - 1:
                coarse = (coarse.reshape(-1, have[axis]) @ weights.T).reshape(*have[:axis], length)
            else:
                columns = coarse.reshape(math.prod(have[:axis]), have[axis], -1)
                coarse = (weights @ columns).reshape(*have[:axis], length, *have[axis + 1 :])
    return coarse


def sample(images: Tensor, positions: Tensor) -> Tensor:
    """Return images ``(B, C, *S)`` linearly interpolated at positions ``(B, D, *S)`` in voxels; 0 outside.

    A volume is laid out as one tall image of all its rows, with rows of zeros between the slices, and sampled in
    the slice below and in the slice above: on a CPU, torch samples images many times faster than volumes.
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
    """Return positions ``(B, *S, 2)`` as grid_sample takes them: columns first, -1 and 1 the edges of the image."""
    grid = rows.new_empty((*rows.shape, 2))
    torch.mul(columns, 2 / width, out=grid[..., 0]).add_(1 / width - 1)
    torch.mul(rows, 2 / height, out=grid[..., 1]).add_(1 / height - 1)
    return grid


def _linear_weights(nodes: int, length: int, device: torch.device) -> Tensor:
    """Return the ``(length, nodes)`` matrix of linear interpolation."""
    positions = torch.linspace(0, nodes - 1, length, device=device)
    return (1 - (positions[:, None] - torch.arange(nodes, device=device)).abs()).clamp_min(0)
