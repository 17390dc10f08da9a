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
from anomaly.training.fields import chance, smooth_field, uniform

Spacing = tuple[float, float, float]


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
    slab = as_slab(images)
    foreground = slab != 0
    noises = [_noise(slab, scale, spacing, rng) for scale in settings.noise_scales_mm]
    corrupted = _add_noise(slab, noises, settings, rng)
    changed = torch.zeros_like(slab)
    for number in range(settings.blobs):
        blob = _blob(slab, mask, noises, spacing, settings, rng)
        blob = blob * chance(slab, 1 - number / (settings.blobs + 1), rng)
        corrupted = torch.lerp(corrupted, _target(corrupted, slab, noises, settings, rng), blob)
        changed = torch.maximum(changed, blob)
    corrupted = from_slab(corrupted * foreground, images)
    changed = from_slab(changed * foreground, images)
    middle = changed.shape[1] // 2
    return corrupted, changed[:, middle : middle + 1]


def as_slab(images: Tensor) -> Tensor:
    """Return images as ``(B, 1, X, Y, Z)``: channels of 2D slices become the first spatial axis."""
    return images[:, None] if images.ndim == 4 else images


def from_slab(slab: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`as_slab`."""
    return slab[:, 0] if like.ndim == 4 else slab


def _noise(slab: Tensor, scale_mm: float, spacing: Spacing, rng: torch.Generator) -> Tensor:
    nodes = [max(1.0, scale_mm / s) for s in spacing]
    return smooth_field(len(slab), slab.shape[2:], nodes, rng)


def _add_noise(slab: Tensor, noises: list[Tensor], settings: CorruptionSettings, rng: torch.Generator) -> Tensor:
    """Add noise of one scale per image, over all of it or, in half of the images, over a smooth part."""
    strength = uniform(slab, *settings.noise, rng) * chance(slab, settings.noise_probability, rng)
    part = torch.sigmoid(4 * _permuted(noises[-1], rng))
    part = torch.where(chance(slab, 0.5, rng), part, 1.0)
    return slab + strength * _one_of(noises, slab, rng) * part


def _one_of(fields: list[Tensor], like: Tensor, rng: torch.Generator) -> Tensor:
    """Return for every image one of the fields."""
    choice = uniform(like, 0, len(fields), rng).long()
    return torch.stack([field * (choice == n) for n, field in enumerate(fields)]).sum(0)


def _permuted(field: Tensor, rng: torch.Generator) -> Tensor:
    """Return a field that belongs to another image of the batch, mirrored by chance: new noise at no cost."""
    order = torch.randperm(len(field), generator=rng, device=field.device)
    return torch.where(chance(field, 0.5, rng), field.flip(-1, -2), field)[order]


def _blob(
    slab: Tensor,
    mask: Tensor,
    noises: list[Tensor],
    spacing: Spacing,
    settings: CorruptionSettings,
    rng: torch.Generator,
) -> Tensor:
    """Return a soft random shape per image, 0 to 1: an ellipsoid whose surface is displaced by smooth noise."""
    low, high = settings.blob_radius_mm
    radius = low * (high / low) ** uniform(slab, 0.0, 1.0, rng)
    distance = _distance(slab, _places(slab, mask, rng), radius, spacing, rng)
    wobble = uniform(slab, 0.0, 0.35, rng) * _permuted(noises[min(1, len(noises) - 1)], rng)
    softness = uniform(slab, 0.4, 1.5, rng) * min(spacing)
    return torch.sigmoid((1 - distance - wobble) * radius / softness)


def _places(slab: Tensor, mask: Tensor, rng: torch.Generator) -> Tensor:
    """Return a random voxel ``(B, 3)`` of each mask; of a slab, at the middle slice or one beside it."""
    flat = mask.reshape(len(mask), -1).float() + 1e-6
    index = torch.multinomial(flat, 1, generator=rng)[:, 0] if flat.shape[1] < 2**24 else _any_voxel(flat, rng)
    shape = slab.shape[2:]
    if mask.ndim == 4:
        index = index + (shape[0] // 2) * shape[1] * shape[2]
    return torch.stack(torch.unravel_index(index, tuple(shape)), dim=1)


def _any_voxel(flat: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randint(flat.shape[1], (len(flat),), generator=rng, device=flat.device)


def _distance(slab: Tensor, places: Tensor, radius: Tensor, spacing: Spacing, rng: torch.Generator) -> Tensor:
    """Return the distance from a place in units of the radius, another radius along every axis."""
    total = torch.zeros((), device=slab.device)
    for axis, (length, size) in enumerate(zip(slab.shape[2:], spacing, strict=True)):
        along = radius * uniform(slab, -0.5, 0.5, rng).exp()
        positions = torch.arange(length, device=slab.device).reshape([-1 if a == axis else 1 for a in range(3)])
        offset = (positions - places[:, axis].reshape(-1, 1, 1, 1, 1)) * size
        total = total + (offset / along) ** 2
    return total.sqrt()


def _target(
    current: Tensor, original: Tensor, noises: list[Tensor], settings: CorruptionSettings, rng: torch.Generator
) -> Tensor:
    """Return what the inside of a blob turns into, one kind per image."""
    kind = uniform(current, 0.0, 1.0, rng)
    texture = 1 + uniform(current, 0.0, 0.3, rng) * _permuted(noises[0], rng)
    sign = torch.where(chance(current, settings.dark, rng), -1.0, 1.0)
    lowest = current.amin(dim=(1, 2, 3, 4), keepdim=True).clamp_max(0)  # 0 unless intensities may be negative
    shifted = current + sign * uniform(current, *settings.shift, rng) * texture * (current - lowest)
    top = original.amax(dim=(1, 2, 3, 4), keepdim=True)
    flat = (lowest + uniform(current, 0.1, 0.9, rng) * (top - lowest)) * texture
    order = torch.randperm(len(original), generator=rng, device=original.device)
    foreign = torch.where(original[order] != 0, original[order], current)
    inside = torch.where(kind < settings.flat, flat, shifted)
    return torch.where(kind > 1 - settings.foreign, foreign, inside)
