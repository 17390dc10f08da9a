"""Variations of healthy images that another scanner, or another registration, would have given.

All work on whole batches where the batch is, so that they cost little beside a training step. Intensities are
those of the preprocessed scan; 0 is background and stays background.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from anomaly.models.components.random_fields import (
    chance,
    foreground_mask,
    host_generator,
    sample,
    uniform,
    upsample,
)
from anomaly.training.settings import AugmentationSettings

HOST_STREAM = 0


def augment(
    images: Tensor, mask: Tensor, view: ImageView, settings: AugmentationSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a random variation of each image.

    Parameters
    ----------
    images
        ``(B, C, *S)``, 0 in the background.
    mask
        ``(B, 1, *S)`` bool.
    view
        How the images were cut; it knows which dimension is left-right.
    settings
        How much.
    rng
        On the device of the images.
    """
    images, mask = mirror(images, mask, view, settings.flip, rng)
    images, mask = deform(images, mask, settings, rng)
    foreground = foreground_mask(images)
    images = blur(images, foreground, settings.blur, rng)
    images = random_contrast(images, settings, rng)
    if settings.noise:
        strength = uniform(images, 0.0, settings.noise, rng)
        images = torch.addcmul(images, strength, torch.randn(images.shape, generator=rng, device=images.device))
    return images * foreground, mask


def mirror(
    images: Tensor, mask: Tensor, view: ImageView, probability: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Swap left and right (the first axis I of the volume) in some images; sagittal slices have no such axis."""
    if probability == 0 or (view.kind == "slice" and view.axis == 0):
        return images, mask
    chosen = chance(images, probability, rng)
    return torch.lerp(images, images.flip(2), chosen.float()), torch.where(chosen, mask.flip(2), mask)


def deform(
    images: Tensor, mask: Tensor, settings: AugmentationSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Move, turn, scale and bend images a little: what registration leaves over."""
    if not (settings.translate or settings.rotate or settings.scale or settings.elastic):
        return images, mask
    # The whole batch at once or not at all, so that what is left alone costs nothing.
    host = host_generator(rng, HOST_STREAM)
    if host.random() >= settings.deform:
        return images, mask
    few, many = settings.elastic_nodes
    positions = _positions(images, settings, int(host.integers(few, many + 1)), rng)
    channels = images.shape[1]
    parts = [images, mask.float()] if channels == 1 else [images, foreground_mask(images), mask.float()]
    moved = sample(torch.cat(parts, dim=1), positions)
    inside = moved[:, channels:] > 0.5  # of every channel (the mask, where there is one), and of the mask
    return moved[:, :channels] * inside[:, :channels], inside[:, -1:]


def _positions(images: Tensor, settings: AugmentationSettings, nodes: int, rng: torch.Generator) -> Tensor:
    """Return where each voxel is sampled ``(B, D, *S)``, voxels: a small random affine map plus a smooth bend.

    Everything is computed at a few nodes and interpolated. The bend is a share of the distance between nodes, so
    that nothing folds.
    """
    batch, shape, device = len(images), images.shape[2:], images.device
    dims = len(shape)
    last = torch.tensor([n - 1.0 for n in shape], device=device)

    def noise(*shape: int) -> Tensor:
        return torch.rand((batch, *shape), generator=rng, device=device) * 2 - 1

    turn = noise(dims, dims).triu(1) * math.radians(settings.rotate)
    linear = torch.eye(dims, device=device) + turn - turn.mT + torch.diag_embed(noise(dims) * settings.scale)
    share = torch.linspace(-0.5, 0.5, nodes, device=device)
    places = torch.cartesian_prod(*[share] * dims) * last
    strength = settings.elastic * noise(1, 1).abs() * last / (nodes - 1)
    bend = torch.randn((batch, len(places), dims), generator=rng, device=device) * strength
    positions = places @ linear.mT + bend + noise(1, dims) * settings.translate + last / 2
    return upsample(positions.mT.reshape(batch, dims, *[nodes] * dims), shape)


def blur(images: Tensor, foreground: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Smooth by one step of diffusion between neighbouring foreground voxels, of a random strength per image."""
    if amount == 0:
        return images
    strength = uniform(images, 0.0, amount, rng) / 3
    smoothed = images.clone()
    for axis in range(2, images.ndim):
        length = images.shape[axis] - 1
        before, after = images.narrow(axis, 0, length), images.narrow(axis, 1, length)
        flow = (after - before).mul_(foreground.narrow(axis, 0, length)).mul_(foreground.narrow(axis, 1, length))
        flow *= strength
        smoothed.narrow(axis, 0, length).add_(flow)
        smoothed.narrow(axis, 1, length).sub_(flow)
    return smoothed


def random_contrast(images: Tensor, settings: AugmentationSettings, rng: torch.Generator) -> Tensor:
    """Bend the contrast curve, scale all intensities and add a smooth drift, each by a random amount."""
    if settings.gamma:
        exponent = uniform(images, -settings.gamma, settings.gamma, rng).exp()
        images = images.abs().pow_(exponent).copysign_(images)
    if settings.bias_field or settings.brightness:
        drift = torch.randn((len(images), 1, *[4] * (images.ndim - 2)), generator=rng, device=images.device)
        drift = drift * uniform(images, 0.0, settings.bias_field, rng)
        drift = drift + uniform(images, -settings.brightness, settings.brightness, rng)
        images = images * upsample(drift.exp(), images.shape[2:])
    return images
