"""Synthetic changes that a denoiser learns to undo. A building block, not a family.

Three kinds, all procedural (no lesion shape of any data set is used):

- noise of a random scale, over the whole image or part of it: coarse, smooth Gaussian noise (Kascenas et al. 2022,
  "Denoising autoencoders for unsupervised anomaly detection in brain MRI"), or simplex noise in octaves (Wyatt et
  al. 2022, "AnoDDPM");
- local changes: soft blobs of random size and outline, inside which the image turns darker or brighter, moves
  towards one intensity, or shows the same place of another scan (in the spirit of DISYRE, arXiv 2311.15453);
- masking, where asked for: random cubes of a lattice lose all that is inside them (He et al. 2022, "Masked
  autoencoders are scalable vision learners").

A stack of neighbouring slices is treated as the thin slab it is, so that a blob runs through its slices.
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
from anomaly.models.components.masking import Lattice, without_cubes
from anomaly.models.components.random_fields import (
    bernoulli,
    foreground_mask,
    host_generator,
    smooth_field,
    uniform,
    upsample,
)
from anomaly.models.components.simplex_noise import simplex_field

Spacing = tuple[float, float, float]

NOWHERE = 30.0  # log-odds that are as good as certain
ELSEWHERE_MM = 40.0
HOST_STREAM = 1
OCTAVES = 4  # of simplex noise, at most


class CorruptionSettings(Settings):
    """How strongly images are corrupted. Lengths are millimetres, so they hold on every grid."""

    noise_probability: float = Field(0.35, ge=0, le=1, description="chance that an image gets noise")
    noise_kind: Literal["coarse", "simplex"] = Field(
        "coarse", description="coarse: smooth, of one size; simplex: of that size and finer, as rough as anatomy"
    )
    noise: tuple[float, float] = Field((0.05, 0.25), description="range of the SD of noise, intensity units")
    noise_scales_mm: tuple[float, ...] = Field((6.0, 14.0, 40.0), min_length=1, description="sizes of its grain")
    blobs: int = Field(4, ge=0, description="largest number of local changes in an image")
    blob_radius_mm: tuple[float, float] = Field((4.0, 36.0), description="range of their radius, log-uniform")
    shift: tuple[float, float] = Field((0.08, 0.7), description="range of |share of intensity| lost or gained")
    dark: float = Field(0.67, ge=0, le=1, description="share of the shifts that darken")
    flat: float = Field(0.2, ge=0, le=1, description="share of the blobs that move towards one intensity")
    foreign: float = Field(0.15, ge=0, le=1, description="share of the blobs that show another scan's tissue")
    masked: float = Field(
        0.0, ge=0, le=1, description="chance that an image loses random cubes (squares of slices)"
    )
    mask_size_mm: float = Field(16.0, gt=0, description="edge of the cubes")
    mask_share: float = Field(0.3, ge=0, le=1, description="share of the cubes that are lost")
    mask_fill: Literal["mean", "zero"] = Field("mean", description="what fills a cube: its own mean, or 0")


def corrupt(
    images: Tensor, mask: Tensor, spacing: Spacing, settings: CorruptionSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return corrupted images and where they were changed.

    Parameters
    ----------
    images
        ``(B, C, *S)``, 0 in the background.
    mask
        ``(B, 1, *S)`` bool.
    spacing
        Voxel size in millimetres along the three axes of :func:`as_slab`.
    settings
        How strongly.
    rng
        On the device of the images.

    Returns
    -------
    corrupted
        ``(B, C, *S)``.
    changed
        ``(B, 1, *S)``, 0 to 1: how far a voxel lies inside a local change or a lost cube.
    """
    with torch.autocast(images.device.type, enabled=False):
        slab, host = as_slab(images), host_generator(rng, HOST_STREAM)
        shape = slab.shape[2:]
        canvas = _canvas(slab, mask, spacing, settings, rng)
        blobs = upsample(_blobs(canvas, mask, settings, rng, host), shape)
        log_odds, gain, offset, *foreign = blobs.split(1, dim=1)
        foreground = foreground_mask(slab)
        blob = torch.sigmoid(log_odds).mul_(foreground)
        difference = torch.addcmul(offset, gain, slab)
        for share in foreign:  # none or one, as the blobs of this batch need
            other = _elsewhere(slab, spacing, rng, host)
            difference.addcmul_(share, (other - slab).mul_(foreground_mask(other)))
        corrupted = torch.addcmul(slab, blob, difference)
        if (noisy := host.random(len(slab)) < settings.noise_probability).any():
            corrupted += upsample(_noise(canvas, noisy, settings, rng, host), shape)
        corrupted.clamp_(canvas.lowest, canvas.highest).mul_(foreground)
        if settings.masked and (masked := host.random(len(slab)) < settings.masked).any():
            edges = [max(1, round(settings.mask_size_mm / size)) for size in spacing]
            share = settings.mask_share * _per_image(masked, slab)
            lattice = Lattice.drawn(shape, edges, host)
            corrupted, lost = without_cubes(corrupted, foreground, lattice, share, settings.mask_fill, rng)
            blob = torch.maximum(blob, lost)
        corrupted, changed = from_slab(corrupted, images), from_slab(blob, images)
    middle = changed.shape[1] // 2
    return corrupted, changed[:, middle : middle + 1]


def as_slab(images: Tensor) -> Tensor:
    """Return images as ``(B, 1, X, Y, Z)``: channels of 2D slices become the first spatial axis."""
    return images[:, None] if images.ndim == 4 else images


def from_slab(slab: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`as_slab`."""
    return slab[:, 0] if like.ndim == 4 else slab


class _Canvas(NamedTuple):
    """What corruptions are drawn on: every second voxel, for they are smooth, and noise that all of them share.

    Parameters
    ----------
    lowest, highest
        Intensity of each image ``(B, 1, 1, 1, 1)``.
    noises
        Smooth noise ``(B, 1, *coarse)`` of each scale.
    steps
        Millimetres between neighbours of the coarse grid.
    spacing
        Millimetres between neighbours of the images.
    """

    lowest: Tensor
    highest: Tensor
    noises: list[Tensor]
    steps: list[float]
    spacing: Spacing


def _canvas(
    slab: Tensor, mask: Tensor, spacing: Spacing, settings: CorruptionSettings, rng: torch.Generator
) -> _Canvas:
    shape = slab.shape[2:]
    # Half along every axis but the few slices of a slab.
    coarse = [n if mask.ndim == 4 and axis == 0 else max(2, n // 2) for axis, n in enumerate(shape)]
    steps = [s * max(1, n - 1) / max(1, few - 1) for s, n, few in zip(spacing, shape, coarse, strict=True)]
    noises = [smooth_field(len(slab), coarse, [max(1.0, mm / s) for s in steps], rng)
              for mm in settings.noise_scales_mm]  # fmt: skip
    every = (1, 2, 3, 4)
    return _Canvas(slab.amin(every, keepdim=True), slab.amax(every, keepdim=True), noises, steps, spacing)


def _blobs(
    canvas: _Canvas, mask: Tensor, settings: CorruptionSettings, rng: torch.Generator, host: np.random.Generator
) -> Tensor:
    """Return log-odds of lying in a blob, gain, offset and, if any, foreign share ``(B, 3 or 4, *coarse)``.

    Every image gets one blob or more. Where blobs meet, the deeper one wins. The logistic of interpolated log-odds
    keeps the sharp edge that an interpolated blob would lose.
    """
    noise = canvas.noises[0]
    deepest = torch.zeros_like(noise[:, [0, 0, 0, 0]])
    deepest[:, 0] -= NOWHERE
    if settings.blobs == 0:
        return deepest
    numbers = host.integers(1, settings.blobs + 1, size=len(noise))
    kinds = host.random((numbers.max(), len(noise)))
    places = _places(mask, noise.shape[2] // 2, len(kinds), rng)
    for n, kind in enumerate(kinds):
        blob = _blob(canvas, places[:, n], _per_image(kind, noise), settings, rng)
        wanted = _per_image(numbers > n, noise)
        deepest = torch.where(wanted & (blob[:, :1] > deepest[:, :1]), blob, deepest)
    return deepest if (kinds > 1 - settings.foreign).any() else deepest[:, :3]


def _per_image(values: Array, like: Tensor) -> Tensor:
    """Return one number per image, known to the program, to broadcast over ``like``."""
    return torch.from_numpy(values).to(like.device).reshape(-1, 1, 1, 1, 1)


def _noise(
    canvas: _Canvas, noisy: Array, settings: CorruptionSettings, rng: torch.Generator, host: np.random.Generator
) -> Tensor:
    """Return noise of one scale per noisy image, over all of it or, in half of them, over a smooth part."""
    noises = canvas.noises
    like = noises[0]
    strength = uniform(like, *settings.noise, rng) * _per_image(noisy, like)
    if settings.noise_kind == "simplex":
        grain = _simplex(canvas, noisy, settings, rng, host)
    else:
        choice = uniform(like, 0, len(noises), rng).long()
        grain = torch.stack([noise * (choice == n) for n, noise in enumerate(noises)]).sum(0)
    everywhere = bernoulli(like, 0.5, rng) * NOWHERE
    return strength * grain * torch.sigmoid(4 * _permuted(noises[-1], rng) + everywhere)


def _simplex(
    canvas: _Canvas, noisy: Array, settings: CorruptionSettings, rng: torch.Generator, host: np.random.Generator
) -> Tensor:
    """Return simplex noise of one scale per noisy image; no octave is finer than the coarse grid."""
    field = torch.zeros_like(canvas.noises[0])
    choice = host.integers(len(settings.noise_scales_mm), size=len(field))
    for n, mm in enumerate(settings.noise_scales_mm):
        chosen = np.flatnonzero(noisy & (choice == n)).tolist()
        if chosen:
            grain = [max(1.0, mm / s) for s in canvas.steps]
            octaves = min(OCTAVES, 1 + int(math.log2(min(grain))))
            field[chosen] = simplex_field(len(chosen), field.shape[2:], grain, rng, octaves)
    return field


def _permuted(field: Tensor, rng: torch.Generator) -> Tensor:
    """Return a field that belongs to another image of the batch, mirrored by chance: new noise at no cost."""
    order = torch.randperm(len(field), generator=rng, device=field.device)
    return torch.lerp(field, field.flip(-1, -2), bernoulli(field, 0.5, rng).float())[order]


def _places(mask: Tensor, middle: int, number: int, rng: torch.Generator) -> Tensor:
    """Return random voxels ``(B, number, 3)`` of each mask; of slices, in the ``middle`` one of their slab."""
    few = mask[:, 0, ::4, ::4, ::4] if mask.ndim == 5 else mask[:, 0, ::4, ::4]
    index = torch.multinomial(few.flatten(1).float() + 1e-9, number, replacement=True, generator=rng)
    places = torch.stack(torch.unravel_index(index, few.shape[1:]), dim=-1) * 4
    return places if mask.ndim == 5 else F.pad(places, (1, 0), value=middle)


def _blob(
    canvas: _Canvas, place: Tensor, kind: Tensor, settings: CorruptionSettings, rng: torch.Generator
) -> Tensor:
    """Return log-odds, gain, offset and foreign share ``(B, 4, *coarse)`` of one random shape per image.

    The shape is an ellipsoid about ``place`` ``(B, 3)``, voxels, whose surface is displaced by smooth noise.
    ``kind``, 0 to 1, says what becomes of its inside.
    """
    like = canvas.noises[0]
    low, high = settings.blob_radius_mm
    radius = low * (high / low) ** uniform(like, 0.0, 1.0, rng)
    wobble = uniform(like, 0.0, 0.35, rng) * _permuted(canvas.noises[min(1, len(canvas.noises) - 1)], rng)
    softness = uniform(like, 0.4, 1.5, rng) * min(canvas.spacing)
    log_odds = (1 - _distance(canvas, place, radius, rng) - wobble) * (radius / softness)
    return torch.cat([log_odds, *_effect(canvas, kind, settings, rng)], dim=1)


def _distance(canvas: _Canvas, place: Tensor, radius: Tensor, rng: torch.Generator) -> Tensor:
    """Return the distance from a place in units of the radius, another radius along every axis."""
    like = canvas.noises[0]
    total = torch.zeros((), device=like.device)
    for axis, length in enumerate(like.shape[2:]):
        positions = torch.arange(length, device=like.device) * canvas.steps[axis]
        positions = positions.reshape([-1 if other == axis else 1 for other in range(3)])
        offset = positions - place[:, axis].reshape(-1, 1, 1, 1, 1) * canvas.spacing[axis]
        total = total + (offset / (radius * uniform(like, -0.5, 0.5, rng).exp())) ** 2
    return total.sqrt()


def _effect(
    canvas: _Canvas, kind: Tensor, settings: CorruptionSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gain, offset and foreign share of what becomes of the inside of a blob: one kind per image.

    The inside turns into x + gain · x + offset + foreign · (elsewhere − x).
    """
    like = canvas.noises[0]
    texture = 1 + uniform(like, 0.0, 0.3, rng) * _permuted(like, rng)
    sign = 1 - 2 * bernoulli(like, settings.dark, rng).float()
    # Intensities below 0 (z-scores): a shift is a share of the distance from the lowest intensity, not from 0.
    shift = sign * uniform(like, *settings.shift, rng)
    level = canvas.lowest + uniform(like, 0.1, 0.9, rng) * (canvas.highest - canvas.lowest)
    foreign = (kind > 1 - settings.foreign).float()
    flat = (kind < settings.flat).float()
    shift = shift * (1 - foreign - flat)
    return shift * texture - flat, (flat * level - shift * canvas.lowest) * texture, foreign.expand_as(texture)


def _elsewhere(slab: Tensor, spacing: Spacing, rng: torch.Generator, host: np.random.Generator) -> Tensor:
    """Return a scan of the batch, moved by up to ELSEWHERE_MM along the axes of the image."""
    other = slab if len(slab) == 1 else slab[torch.randperm(len(slab), generator=rng, device=slab.device)]
    reach = [min(n // 2, round(ELSEWHERE_MM / size)) for n, size in zip(slab.shape[2:], spacing, strict=True)]
    shifts = host.integers(-np.array(reach), np.array(reach) + 1).tolist()
    return other.roll(shifts, dims=(2, 3, 4))
