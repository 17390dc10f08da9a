"""Variations of healthy images that another scanner, or another registration, would have given.

All work on whole batches where the batch is, so that they cost little beside a training step. Intensities are
those of the preprocessed scan; 0 is background and stays background.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from anomaly.core.views import View
from anomaly.training.fields import chance, nonzero, uniform, upsample
from anomaly.training.settings import AugmentationSettings


def augment(
    images: Tensor, mask: Tensor, view: View, settings: AugmentationSettings, rng: torch.Generator
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
    foreground = nonzero(images)
    images = blur(images, foreground, settings.blur, rng)
    images = recontrast(images, settings, rng)
    if settings.noise:
        strength = uniform(images, 0.0, settings.noise, rng)
        images = images + strength * torch.randn(images.shape, generator=rng, device=images.device)
    return images * foreground, mask


def mirror(
    images: Tensor, mask: Tensor, view: View, probability: float, rng: torch.Generator
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
    # The whole batch at once or not at all, as the seed of the step says: asking the GPU would wait for it.
    others, chosen = divmod(rng.initial_seed(), 1000)
    if chosen >= 1000 * settings.deform:
        return images, mask
    few, many = settings.elastic_nodes
    grid = _positions(images, settings, few + others % (many - few + 1), rng)
    channels = images.shape[1]
    parts = [images, mask.float()] if channels == 1 else [images, nonzero(images), mask.float()]
    moved = F.grid_sample(torch.cat(parts, dim=1), grid, mode="bilinear", align_corners=False)
    inside = moved[:, channels:] > 0.5  # of every channel (the mask, where there is one), and of the mask
    return moved[:, :channels] * inside[:, :channels], inside[:, -1:]


def _positions(images: Tensor, settings: AugmentationSettings, nodes: int, rng: torch.Generator) -> Tensor:
    """Return where each voxel is sampled ``(B, *S, D)``: a small random affine map plus a smooth displacement.

    Everything is computed at a few nodes and interpolated, in grid_sample's units: from -1 to 1 along each axis,
    the last axis first. The displacement is a share of the distance between nodes, so that nothing folds.
    """
    batch, shape, device = len(images), images.shape[2:], images.device
    dims = len(shape)
    size = torch.tensor([float(n) for n in reversed(shape)], device=device)

    def noise(*shape: int) -> Tensor:
        return torch.rand((batch, *shape), generator=rng, device=device) * 2 - 1

    turn = noise(dims, dims).triu(1) * math.radians(settings.rotate)
    linear = torch.eye(dims, device=device) + turn - turn.mT + torch.diag_embed(noise(dims) * settings.scale)
    edges = [torch.linspace(1 / n - 1, 1 - 1 / n, nodes, device=device) * n / 2 for n in shape]
    places = torch.stack(torch.meshgrid(*edges, indexing="ij")[::-1], dim=-1).reshape(-1, dims)
    strength = settings.elastic * noise(1, 1).abs() * (size - 1) / (nodes - 1)
    bend = torch.randn((batch, len(places), dims), generator=rng, device=device) * strength
    voxels = places @ linear.mT + bend + noise(1, dims) * settings.translate
    positions = (voxels * 2 / size).mT.reshape(batch, dims, *[nodes] * dims)
    return upsample(positions, shape).movedim(1, -1)


def blur(images: Tensor, foreground: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Smooth by one step of diffusion between neighbouring foreground voxels, of a random strength per image."""
    if amount == 0:
        return images
    strength = uniform(images, 0.0, amount, rng) / 3
    smoothed = images.clone()
    for axis in range(2, images.ndim):
        length = images.shape[axis] - 1
        before, after = images.narrow(axis, 0, length), images.narrow(axis, 1, length)
        both = foreground.narrow(axis, 0, length) * foreground.narrow(axis, 1, length)
        flow = (after - before) * both * strength
        smoothed.narrow(axis, 0, length).add_(flow)
        smoothed.narrow(axis, 1, length).sub_(flow)
    return smoothed


def recontrast(images: Tensor, settings: AugmentationSettings, rng: torch.Generator) -> Tensor:
    """Bend the contrast curve, scale all intensities and add a smooth drift, each by a random amount."""
    if settings.gamma:
        exponent = uniform(images, -settings.gamma, settings.gamma, rng).exp()
        images = images.abs().pow(exponent) * images.sign()
    if settings.bias_field or settings.brightness:
        drift = torch.randn((len(images), 1, *[4] * (images.ndim - 2)), generator=rng, device=images.device)
        drift = drift * uniform(images, 0.0, settings.bias_field, rng)
        drift = drift + uniform(images, -settings.brightness, settings.brightness, rng)
        images = images * upsample(drift.exp(), images.shape[2:])
    return images
