"""Synthetic changes that a denoiser learns to undo. A building block, not a family.

Two kinds, both procedural (no lesion shape of any data set is used):

- coarse noise: smooth Gaussian noise of a random scale, over the whole image or part of it (Kascenas et al.
  2022, "Denoising autoencoders for unsupervised anomaly detection in brain MRI");
- local changes: soft blobs of random size and outline, inside which the image turns darker or brighter, moves
  towards one intensity, or shows the same place of another scan (in the spirit of DISYRE, arXiv 2311.15453).

A stack of neighbouring slices is treated as the thin slab it is, so that a blob runs through its slices.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from anomaly.core.config import Settings
from anomaly.training.fields import chance, nonzero, smooth_field, uniform, upsample

Spacing = tuple[float, float, float]

NOWHERE = 30.0  # log-odds that are as good as certain
ELSEWHERE_MM = 40.0


class CorruptionSettings(Settings):
    """How strongly images are corrupted. Lengths are millimetres, so they hold on every grid."""

    noise_probability: float = Field(0.35, ge=0, le=1, description="chance that an image gets coarse noise")
    noise: tuple[float, float] = Field((0.05, 0.25), description="range of the SD of coarse noise, intensity units")
    noise_scales_mm: tuple[float, ...] = Field((6.0, 14.0, 40.0), min_length=1, description="sizes of its grain")
    blobs: int = Field(4, ge=0, description="largest number of local changes in an image")
    blob_radius_mm: tuple[float, float] = Field((4.0, 36.0), description="range of their radius, log-uniform")
    shift: tuple[float, float] = Field((0.08, 0.7), description="range of |share of intensity| lost or gained")
    dark: float = Field(0.67, ge=0, le=1, description="share of the shifts that darken")
    flat: float = Field(0.2, ge=0, le=1, description="share of the blobs that move towards one intensity")
    foreign: float = Field(0.15, ge=0, le=1, description="share of the blobs that show another scan's tissue")


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
        ``(B, 1, *S)``, 0 to 1: how far a voxel lies inside a local change.
    """
    with torch.autocast(images.device.type, enabled=False):
        slab = as_slab(images)
        foreground = nonzero(slab)
        change = _draw(slab, mask, spacing, settings, rng)
        blob = torch.sigmoid(change[:, :1]) * foreground
        gain, offset, foreign, noise = change[:, 1:].split(1, dim=1)
        other = _elsewhere(slab, spacing, rng)
        difference = torch.addcmul(offset, gain, slab).addcmul_(foreign, (other - slab) * nonzero(other))
        corrupted = torch.addcmul(slab + noise, blob, difference)
        corrupted = torch.minimum(corrupted, highest(slab)).maximum(lowest(slab)).mul_(foreground)
        corrupted = from_slab(corrupted, images)
        changed = from_slab(blob, images)
    middle = changed.shape[1] // 2
    return corrupted, changed[:, middle : middle + 1]


def as_slab(images: Tensor) -> Tensor:
    """Return images as ``(B, 1, X, Y, Z)``: channels of 2D slices become the first spatial axis."""
    return images[:, None] if images.ndim == 4 else images


def from_slab(slab: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`as_slab`."""
    return slab[:, 0] if like.ndim == 4 else slab


def lowest(slab: Tensor) -> Tensor:
    """Return the lowest intensity of each image ``(B, 1, 1, 1, 1)``."""
    return slab.amin(dim=(1, 2, 3, 4), keepdim=True)


def highest(slab: Tensor) -> Tensor:
    """Return the highest intensity of each image ``(B, 1, 1, 1, 1)``."""
    return slab.amax(dim=(1, 2, 3, 4), keepdim=True)


def _draw(
    slab: Tensor, mask: Tensor, spacing: Spacing, settings: CorruptionSettings, rng: torch.Generator
) -> Tensor:
    """Return five fields ``(B, 5, X, Y, Z)``: log-odds of lying in a blob, gain, offset, foreign share, noise.

    All are smooth, so they are drawn on every second voxel and interpolated; the logistic of interpolated
    log-odds still has the sharp edge that an interpolated blob would lose. Where blobs meet, the deeper one wins.
    """
    shape = _every_second(slab, mask)
    steps = [s * (n - 1) / max(1, few - 1) for s, n, few in zip(spacing, slab.shape[2:], shape, strict=True)]
    noises = [smooth_field(len(slab), shape, [max(1.0, mm / s) for s in steps], rng)
              for mm in settings.noise_scales_mm]  # fmt: skip
    blobs = [_blob(slab, mask, noises, steps, spacing, settings, rng) for _ in range(settings.blobs)]
    blobs = [_drop(blob, 1 - n / (len(blobs) + 1), rng) for n, blob in enumerate(blobs)]
    deepest = blobs[0] if blobs else torch.zeros((len(slab), 4, *shape), device=slab.device) - NOWHERE
    for blob in blobs[1:]:
        deeper = (blob[:, :1] > deepest[:, :1]).float()
        deepest = torch.lerp(deepest, blob, deeper)
    return upsample(torch.cat([deepest, _noise(slab, noises, settings, rng)], dim=1), slab.shape[2:])


def _every_second(slab: Tensor, mask: Tensor) -> tuple[int, ...]:
    """Return the shape that fields are drawn on: half along every axis but the few slices of a slab."""
    return tuple(n if mask.ndim == 4 and axis == 0 else max(2, n // 2) for axis, n in enumerate(slab.shape[2:]))


def _drop(blob: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Keep a blob in some images only."""
    keep = chance(blob, probability, rng).float()
    return torch.cat([blob[:, :1] * keep - NOWHERE * (1 - keep), blob[:, 1:]], dim=1)


def _noise(slab: Tensor, noises: list[Tensor], settings: CorruptionSettings, rng: torch.Generator) -> Tensor:
    """Return noise of one scale per image, over all of it or, in half of the images, over a smooth part."""
    strength = uniform(slab, *settings.noise, rng) * chance(slab, settings.noise_probability, rng)
    choice = uniform(slab, 0, len(noises), rng).long()
    grain = torch.stack([noise * (choice == n) for n, noise in enumerate(noises)]).sum(0)
    everywhere = chance(slab, 0.5, rng) * NOWHERE
    return strength * grain * torch.sigmoid(4 * _permuted(noises[-1], rng) + everywhere)


def _permuted(field: Tensor, rng: torch.Generator) -> Tensor:
    """Return a field that belongs to another image of the batch, mirrored by chance: new noise at no cost."""
    order = torch.randperm(len(field), generator=rng, device=field.device)
    return torch.lerp(field, field.flip(-1, -2), chance(field, 0.5, rng).float())[order]


def _blob(
    slab: Tensor,
    mask: Tensor,
    noises: list[Tensor],
    steps: list[float],
    spacing: Spacing,
    settings: CorruptionSettings,
    rng: torch.Generator,
) -> Tensor:
    """Return log-odds, gain, offset and foreign share ``(B, 4, *coarse)`` of one random shape per image.

    The shape is an ellipsoid whose surface is displaced by smooth noise.
    """
    low, high = settings.blob_radius_mm
    radius = low * (high / low) ** uniform(slab, 0.0, 1.0, rng)
    distance = _distance(_places(mask, slab, rng), noises[0], steps, spacing, radius, rng)
    wobble = uniform(slab, 0.0, 0.35, rng) * _permuted(noises[min(1, len(noises) - 1)], rng)
    softness = uniform(slab, 0.4, 1.5, rng) * min(spacing)
    log_odds = (1 - distance - wobble) * radius / softness
    return torch.cat([log_odds, *_effect(slab, noises, settings, rng)], dim=1)


def _places(mask: Tensor, slab: Tensor, rng: torch.Generator) -> Tensor:
    """Return a random voxel ``(B, 3)`` of each mask; of slices, in the middle one of their slab."""
    few = mask[:, 0, ::4, ::4, ::4] if mask.ndim == 5 else mask[:, 0, ::4, ::4]
    index = torch.multinomial(few.flatten(1).float() + 1e-9, 1, generator=rng)[:, 0]
    place = torch.stack(torch.unravel_index(index, few.shape[1:]), dim=1) * 4
    if mask.ndim == 5:
        return place
    return torch.cat([torch.full_like(place[:, :1], slab.shape[2] // 2), place], dim=1)


def _distance(
    places: Tensor, like: Tensor, steps: list[float], spacing: Spacing, radius: Tensor, rng: torch.Generator
) -> Tensor:
    """Return the distance from a place in units of the radius, another radius along every axis."""
    total = torch.zeros((), device=like.device)
    for axis, length in enumerate(like.shape[2:]):
        positions = torch.arange(length, device=like.device) * steps[axis]
        positions = positions.reshape([-1 if other == axis else 1 for other in range(3)])
        offset = positions - places[:, axis].reshape(-1, 1, 1, 1, 1) * spacing[axis]
        total = total + (offset / (radius * uniform(like, -0.5, 0.5, rng).exp())) ** 2
    return total.sqrt()


def _effect(
    slab: Tensor, noises: list[Tensor], settings: CorruptionSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gain, offset and foreign share of what becomes of the inside of a blob: one kind per image.

    The inside turns into x + gain · x + offset + foreign · (elsewhere − x).
    """
    kind = uniform(slab, 0.0, 1.0, rng)
    texture = 1 + uniform(slab, 0.0, 0.3, rng) * _permuted(noises[0], rng)
    sign = 1 - 2 * chance(slab, settings.dark, rng).float()
    # Intensities below 0 (z-scores): a shift is a share of the distance from the lowest intensity, not from 0.
    bottom, top = lowest(slab), highest(slab)
    shift = sign * uniform(slab, *settings.shift, rng) * texture
    level = (bottom + uniform(slab, 0.1, 0.9, rng) * (top - bottom)) * texture
    foreign = (kind > 1 - settings.foreign).float()
    flat = (kind < settings.flat).float()
    shifted = 1 - foreign - flat
    return shifted * shift - flat, flat * level - shifted * shift * bottom, foreign.expand_as(texture)


def _elsewhere(slab: Tensor, spacing: Spacing, rng: torch.Generator) -> Tensor:
    """Return a scan of the batch, moved by up to ELSEWHERE_MM along the axes of the image."""
    moved = slab if len(slab) == 1 else slab[torch.randperm(len(slab), generator=rng, device=slab.device)]
    for axis, (length, size) in enumerate(zip(slab.shape[2:], spacing, strict=True), start=2):
        reach = min(length // 2, round(ELSEWHERE_MM / size))
        shift = torch.randint(-reach, reach + 1, (1,), generator=rng, device=slab.device)
        moved = moved.index_select(axis, (torch.arange(length, device=slab.device) + shift) % length)
    return moved
