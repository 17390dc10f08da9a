"""Augmentation: vary healthy images as another scanner or another registration would.

Every function works on a whole batch on its device, so that it costs little compared with a training step.
Intensities are those of the preprocessed scan; 0 is background and stays background.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from anomaly.models.base import foreground_mask
from anomaly.models.components.random_fields import (
    bernoulli,
    host_generator,
    sample,
    uniform,
    upsample,
)
from anomaly.training.settings import AugmentationSettings

HOST_STREAM = 0  # random stream of the numbers drawn on the CPU


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
        How the images were cut, and thus which dimension is left-right.
    settings
        Probabilities and strengths.
    rng
        Random numbers, on the device of the images.

    Returns
    -------
    tuple of Tensor
        Images ``(B, C, *S)`` and masks ``(B, 1, *S)``.
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
    """Mirror some images left to right (axis I of the volume); sagittal slices, which lack that axis, stay."""
    if probability == 0 or (view.kind == "slice" and view.axis == 0):
        return images, mask
    chosen = bernoulli(images, probability, rng)
    return torch.lerp(images, images.flip(2), chosen.float()), torch.where(chosen, mask.flip(2), mask)


def deform(
    images: Tensor, mask: Tensor, settings: AugmentationSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Translate, rotate, scale and warp images a little, as errors of registration do."""
    if not (settings.translate or settings.rotate or settings.scale or settings.elastic):
        return images, mask
    # Deform the whole batch or none of it, so that a batch that is not deformed costs nothing.
    host = host_generator(rng, HOST_STREAM)
    if host.random() >= settings.deform:
        return images, mask
    fewest, most = settings.elastic_nodes
    positions = _positions(images, settings, int(host.integers(fewest, most + 1)), rng)
    channels = images.shape[1]
    parts = [images, mask.float()] if channels == 1 else [images, foreground_mask(images), mask.float()]
    moved = sample(torch.cat(parts, dim=1), positions)
    inside = moved[:, channels:] > 0.5  # foreground of each channel, then the mask
    return moved[:, :channels] * inside[:, :channels], inside[:, -1:]


def _positions(images: Tensor, settings: AugmentationSettings, nodes: int, rng: torch.Generator) -> Tensor:
    """Return where each voxel is sampled ``(B, D, *S)``, voxels: a small random affine map plus a smooth warp.

    Positions are computed at a few nodes and interpolated. The warp is a share of the distance between nodes, so
    that it does not fold.
    """
    batch, shape, device = len(images), images.shape[2:], images.device
    dims = len(shape)
    last = torch.tensor([n - 1.0 for n in shape], device=device)

    def noise(*shape: int) -> Tensor:
        return torch.rand((batch, *shape), generator=rng, device=device) * 2 - 1

    rotation = noise(dims, dims).triu(1) * math.radians(settings.rotate)
    linear = (
        torch.eye(dims, device=device) + rotation - rotation.mT + torch.diag_embed(noise(dims) * settings.scale)
    )
    share = torch.linspace(-0.5, 0.5, nodes, device=device)
    nodes_at = torch.cartesian_prod(*[share] * dims) * last
    strength = settings.elastic * noise(1, 1).abs() * last / (nodes - 1)
    warp = torch.randn((batch, len(nodes_at), dims), generator=rng, device=device) * strength
    positions = nodes_at @ linear.mT + warp + noise(1, dims) * settings.translate + last / 2
    return upsample(positions.mT.reshape(batch, dims, *[nodes] * dims), shape)


def blur(images: Tensor, foreground: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Blur by one step of diffusion between neighbouring foreground voxels, with a random strength per image."""
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
    """Change gamma and brightness and multiply by a smooth bias field, each by a random amount."""
    if settings.gamma:
        exponent = uniform(images, -settings.gamma, settings.gamma, rng).exp()
        images = images.abs().pow_(exponent).copysign_(images)
    if settings.bias_field or settings.brightness:
        drift = torch.randn((len(images), 1, *[4] * (images.ndim - 2)), generator=rng, device=images.device)
        drift = drift * uniform(images, 0.0, settings.bias_field, rng)
        drift = drift + uniform(images, -settings.brightness, settings.brightness, rng)
        images = images * upsample(drift.exp(), images.shape[2:])
    return images
