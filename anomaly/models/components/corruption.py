"""Synthetic changes that a denoiser learns to undo. A building block, not a family.

There are three kinds. All are procedural; no lesion shapes of any data set are used.

- Noise of a random scale, in the whole image or in part of it: smooth Gaussian noise (Kascenas et al. 2022,
  "Denoising autoencoders for unsupervised anomaly detection in brain MRI"), or simplex noise in octaves (Wyatt et
  al. 2022, "AnoDDPM").
- Local changes: blobs of random size and shape with soft edges. Inside a blob the image becomes darker or brighter,
  becomes flat (one intensity), or is replaced by tissue of another scan, shifted (similar to Naval Marimont et al.
  2023, "DISYRE").
- Masking, as an option: the voxels of random cubes are replaced by a constant (He et al. 2022, "Masked autoencoders
  are scalable vision learners").

Neighbouring slices are treated as a thin slab, so that a blob extends through them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from anomaly.core.config import Settings
from anomaly.core.image_views import Array
from anomaly.models.base import foreground_mask
from anomaly.models.components.masking import CubeGrid, mask_cubes
from anomaly.models.components.random_fields import bernoulli, host_generator, smooth_field, uniform, upsample
from anomaly.models.components.simplex_noise import simplex_field

Spacing = tuple[float, float, float]

SATURATED_LOGIT = 30.0  # its logistic is 1 to float32 precision
MAX_FOREIGN_SHIFT_MM = 40.0  # along each axis
HOST_STREAM = 1  # see host_generator; augmentation uses another stream
MAX_OCTAVES = 4  # of simplex noise


class CorruptionSettings(Settings):
    """Kinds and strength of the corruption. Lengths are in millimetres and thus independent of the grid."""

    noise_probability: float = Field(0.35, ge=0, le=1, description="probability that an image gets noise")
    noise_kind: Literal["coarse", "simplex"] = Field(
        "coarse",
        description="coarse: smooth, of one scale; simplex: of that scale and finer, like anatomy",
    )
    noise: tuple[float, float] = Field((0.05, 0.25), description="range of the SD of noise, intensity units")
    noise_scales_mm: tuple[float, ...] = Field((6.0, 14.0, 40.0), min_length=1, description="scales of the noise")
    max_blobs: int = Field(4, ge=0, description="maximum number of local changes in an image")
    blob_radius_mm: tuple[float, float] = Field((4.0, 36.0), description="range of their radius, log-uniform")
    shift: tuple[float, float] = Field((0.08, 0.7), description="range of the relative loss or gain of intensity")
    dark_share: float = Field(0.67, ge=0, le=1, description="share of the intensity shifts that darken")
    flat_share: float = Field(0.2, ge=0, le=1, description="share of the blobs that become flat")
    foreign_share: float = Field(0.15, ge=0, le=1, description="share of the blobs with tissue of another scan")
    mask_probability: float = Field(
        0.0, ge=0, le=1, description="probability that random cubes (squares of slices) of an image are masked"
    )
    mask_size_mm: float = Field(16.0, gt=0, description="edge length of the cubes")
    mask_share: float = Field(0.3, ge=0, le=1, description="share of the cubes that are masked")
    mask_fill: Literal["mean", "zero"] = Field("mean", description="value of masked voxels: mean of the cube, or 0")


def corrupt(
    images: Tensor, mask: Tensor, spacing: Spacing, settings: CorruptionSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Corrupt images.

    Parameters
    ----------
    images
        ``(B, C, *S)``, 0 in the background.
    mask
        ``(B, 1, *S)`` bool.
    spacing
        Voxel size in millimetres along the three axes of :func:`as_slab`.
    settings
        Kinds and strength of the corruption.
    rng
        On the device of the images.

    Returns
    -------
    corrupted
        ``(B, C, *S)``.
    changed
        ``(B, 1, *S)``, 0 to 1: share of a local change in each voxel of the middle channel, 1 in masked cubes.
    """
    with torch.autocast(images.device.type, enabled=False):
        slab, host = as_slab(images), host_generator(rng, HOST_STREAM)
        shape = slab.shape[2:]
        grid = _coarse_grid(slab, mask, spacing, settings, rng)
        blobs = upsample(_blobs(grid, mask, settings, rng, host), shape)
        logit, gain, offset, *foreign = blobs.split(1, dim=1)
        foreground = foreground_mask(slab)
        blob = torch.sigmoid(logit).mul_(foreground)
        difference = torch.addcmul(offset, gain, slab)
        for share in foreign:  # one, or none if no blob of the batch is foreign
            other = _shifted_other_scan(slab, spacing, rng, host)
            difference.addcmul_(share, (other - slab).mul_(foreground_mask(other)))
        corrupted = torch.addcmul(slab, blob, difference)
        if (noisy := host.random(len(slab)) < settings.noise_probability).any():
            corrupted += upsample(_noise(grid, noisy, settings, rng, host), shape)
        corrupted.clamp_(grid.lowest, grid.highest).mul_(foreground)
        if settings.mask_probability and (masked := host.random(len(slab)) < settings.mask_probability).any():
            edges = [max(1, round(settings.mask_size_mm / size)) for size in spacing]
            share = settings.mask_share * _per_image(masked, slab)
            cubes = CubeGrid.random(shape, edges, host)
            corrupted, hidden = mask_cubes(corrupted, foreground, cubes, share, settings.mask_fill, rng)
            blob = torch.maximum(blob, hidden)
        corrupted, changed = from_slab(corrupted, images), from_slab(blob, images)
    middle = changed.shape[1] // 2
    return corrupted, changed[:, middle : middle + 1]


def as_slab(images: Tensor) -> Tensor:
    """Return images ``(B, C, *S)`` as ``(B, 1, X, Y, Z)``: channels of 2D slices become the first spatial axis."""
    return images[:, None] if images.ndim == 4 else images


def from_slab(slab: Tensor, like: Tensor) -> Tensor:
    """Invert :func:`as_slab`; ``like`` are the images it was applied to."""
    return slab[:, 0] if like.ndim == 4 else slab


class _CoarseGrid(NamedTuple):
    """Grid of every second voxel, on which smooth changes are computed, and noise that all changes reuse.

    Parameters
    ----------
    lowest, highest
        ``(B, 1, 1, 1, 1)`` lowest and highest intensity of each image.
    noises
        Smooth noise ``(B, 1, *coarse)`` of each scale.
    steps
        Distance between neighbouring positions of the coarse grid along each axis, mm.
    spacing
        Distance between neighbouring voxels of the images along each axis, mm.
    """

    lowest: Tensor
    highest: Tensor
    noises: list[Tensor]
    steps: list[float]
    spacing: Spacing


def _coarse_grid(
    slab: Tensor, mask: Tensor, spacing: Spacing, settings: CorruptionSettings, rng: torch.Generator
) -> _CoarseGrid:
    shape = slab.shape[2:]
    # Half the size along every axis except the slice axis of a slab.
    coarse = [n if mask.ndim == 4 and axis == 0 else max(2, n // 2) for axis, n in enumerate(shape)]
    steps = [s * max(1, n - 1) / max(1, few - 1) for s, n, few in zip(spacing, shape, coarse, strict=True)]
    noises = [smooth_field(len(slab), coarse, [max(1.0, mm / s) for s in steps], rng)
              for mm in settings.noise_scales_mm]  # fmt: skip
    every = (1, 2, 3, 4)
    return _CoarseGrid(slab.amin(every, keepdim=True), slab.amax(every, keepdim=True), noises, steps, spacing)


def _blobs(
    grid: _CoarseGrid, mask: Tensor, settings: CorruptionSettings, rng: torch.Generator, host: np.random.Generator
) -> Tensor:
    """Return the logit of lying in a blob, gain, offset and, if needed, foreign share ``(B, 3 or 4, *coarse)``.

    Every image has at least one blob. Where blobs overlap, the one with the larger logit counts. Logits are
    upsampled rather than shares, because the logistic of an interpolated logit keeps edges sharp.
    """
    noise = grid.noises[0]
    deepest = torch.zeros_like(noise[:, [0, 0, 0, 0]])
    deepest[:, 0] -= SATURATED_LOGIT
    if settings.max_blobs == 0:
        return deepest
    numbers = host.integers(1, settings.max_blobs + 1, size=len(noise))
    kinds = host.random((numbers.max(), len(noise)))
    centers = _random_centers(mask, noise.shape[2] // 2, len(kinds), rng)
    for n, kind in enumerate(kinds):
        blob = _blob(grid, centers[:, n], _per_image(kind, noise), settings, rng)
        is_used = _per_image(numbers > n, noise)
        deepest = torch.where(is_used & (blob[:, :1] > deepest[:, :1]), blob, deepest)
    return deepest if (kinds > 1 - settings.foreign_share).any() else deepest[:, :3]


def _per_image(values: Array, like: Tensor) -> Tensor:
    """Return one number per image ``(B,)`` as ``(B, 1, 1, 1, 1)`` on the device of ``like``."""
    return torch.from_numpy(values).to(like.device).reshape(-1, 1, 1, 1, 1)


def _noise(
    grid: _CoarseGrid, noisy: Array, settings: CorruptionSettings, rng: torch.Generator, host: np.random.Generator
) -> Tensor:
    """Return noise ``(B, 1, *coarse)`` of one scale per noisy image; in half of them, only in a smooth region."""
    noises = grid.noises
    like = noises[0]
    strength = uniform(like, *settings.noise, rng) * _per_image(noisy, like)
    if settings.noise_kind == "simplex":
        field = _simplex(grid, noisy, settings, rng, host)
    else:
        choice = uniform(like, 0, len(noises), rng).long()
        field = torch.stack([noise * (choice == n) for n, noise in enumerate(noises)]).sum(0)
    everywhere = bernoulli(like, 0.5, rng) * SATURATED_LOGIT
    return strength * field * torch.sigmoid(4 * _shuffled(noises[-1], rng) + everywhere)


def _simplex(
    grid: _CoarseGrid, noisy: Array, settings: CorruptionSettings, rng: torch.Generator, host: np.random.Generator
) -> Tensor:
    """Return simplex noise of one scale for each noisy image; no octave is finer than the coarse grid."""
    field = torch.zeros_like(grid.noises[0])
    choice = host.integers(len(settings.noise_scales_mm), size=len(field))
    for n, mm in enumerate(settings.noise_scales_mm):
        chosen = np.flatnonzero(noisy & (choice == n)).tolist()
        if chosen:
            grain = [max(1.0, mm / s) for s in grid.steps]
            octaves = min(MAX_OCTAVES, 1 + int(math.log2(min(grain))))
            field[chosen] = simplex_field(len(chosen), field.shape[2:], grain, rng, octaves)
    return field


def _shuffled(field: Tensor, rng: torch.Generator) -> Tensor:
    """Return the fields of the batch in random order, half of them mirrored: cheaper than drawing new noise."""
    order = torch.randperm(len(field), generator=rng, device=field.device)
    return torch.lerp(field, field.flip(-1, -2), bernoulli(field, 0.5, rng).float())[order]


def _random_centers(mask: Tensor, middle: int, number: int, rng: torch.Generator) -> Tensor:
    """Return random voxels ``(B, number, 3)`` inside each mask; for slices, in slice ``middle`` of their slab."""
    coarse = mask[:, 0, ::4, ::4, ::4] if mask.ndim == 5 else mask[:, 0, ::4, ::4]
    index = torch.multinomial(coarse.flatten(1).float() + 1e-9, number, replacement=True, generator=rng)
    centers = torch.stack(torch.unravel_index(index, coarse.shape[1:]), dim=-1) * 4
    return centers if mask.ndim == 5 else F.pad(centers, (1, 0), value=middle)


def _blob(
    grid: _CoarseGrid, center: Tensor, kind: Tensor, settings: CorruptionSettings, rng: torch.Generator
) -> Tensor:
    """Return logit, gain, offset and foreign share ``(B, 4, *coarse)`` of one random blob per image.

    The blob is an ellipsoid about ``center`` ``(B, 3)``, voxels, whose surface is displaced by smooth noise.
    ``kind`` ``(B, 1, 1, 1, 1)``, 0 to 1, selects the change inside; see :func:`_effect`.
    """
    like = grid.noises[0]
    low, high = settings.blob_radius_mm
    radius = low * (high / low) ** uniform(like, 0.0, 1.0, rng)
    displacement = uniform(like, 0.0, 0.35, rng) * _shuffled(grid.noises[min(1, len(grid.noises) - 1)], rng)
    softness = uniform(like, 0.4, 1.5, rng) * min(grid.spacing)
    logit = (1 - _distance(grid, center, radius, rng) - displacement) * (radius / softness)
    return torch.cat([logit, *_effect(grid, kind, settings, rng)], dim=1)


def _distance(grid: _CoarseGrid, center: Tensor, radius: Tensor, rng: torch.Generator) -> Tensor:
    """Return the distance from the center in units of the radius, which varies at random between the axes."""
    like = grid.noises[0]
    total = torch.zeros((), device=like.device)
    for axis, length in enumerate(like.shape[2:]):
        positions = torch.arange(length, device=like.device) * grid.steps[axis]
        positions = positions.reshape([-1 if other == axis else 1 for other in range(3)])
        offset = positions - center[:, axis].reshape(-1, 1, 1, 1, 1) * grid.spacing[axis]
        total = total + (offset / (radius * uniform(like, -0.5, 0.5, rng).exp())) ** 2
    return total.sqrt()


def _effect(
    grid: _CoarseGrid, kind: Tensor, settings: CorruptionSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gain, offset and foreign share inside a blob; each image has one kind of change.

    The intensity x inside becomes x + gain · x + offset + foreign · (tissue of another scan − x).
    """
    like = grid.noises[0]
    texture = 1 + uniform(like, 0.0, 0.3, rng) * _shuffled(like, rng)
    sign = 1 - 2 * bernoulli(like, settings.dark_share, rng).float()
    # A shift is relative to the distance from the lowest intensity, because intensities may be negative (z-scores).
    shift = sign * uniform(like, *settings.shift, rng)
    level = grid.lowest + uniform(like, 0.1, 0.9, rng) * (grid.highest - grid.lowest)
    foreign = (kind > 1 - settings.foreign_share).float()
    flat = (kind < settings.flat_share).float()
    shift = shift * (1 - foreign - flat)
    return shift * texture - flat, (flat * level - shift * grid.lowest) * texture, foreign.expand_as(texture)


def _shifted_other_scan(slab: Tensor, spacing: Spacing, rng: torch.Generator, host: np.random.Generator) -> Tensor:
    """Return the images of the batch in random order, shifted by up to MAX_FOREIGN_SHIFT_MM along each axis."""
    other = slab if len(slab) == 1 else slab[torch.randperm(len(slab), generator=rng, device=slab.device)]
    limit = [
        min(n // 2, round(MAX_FOREIGN_SHIFT_MM / size)) for n, size in zip(slab.shape[2:], spacing, strict=True)
    ]
    shifts = host.integers(-np.array(limit), np.array(limit) + 1).tolist()
    return other.roll(shifts, dims=(2, 3, 4))
