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
from anomaly.training.fields import chance, nonzero, smooth_field, uniform, upsample
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
    if rng.initial_seed() % 1000 >= 1000 * settings.deform:
        return images, mask
    grid = _affine_grid(images, settings, rng)
    if settings.elastic:
        shape = images.shape[2:]
        bend = smooth_field(len(images), shape, [n / 6 for n in shape], rng, channels=len(shape))
        unit = torch.tensor([2.0 / n for n in reversed(shape)], device=images.device)
        strength = uniform(images, 0.0, settings.elastic, rng).unsqueeze(-1)[:, 0]
        grid = grid + strength * bend.movedim(1, -1) * unit
    stacked = torch.cat([images, nonzero(images), mask.float()], dim=1)
    moved = F.grid_sample(stacked, grid, mode="bilinear", align_corners=False)
    channels = images.shape[1]
    inside = moved[:, channels:] > 0.5
    return moved[:, :channels] * inside[:, :channels], inside[:, channels:]


def _affine_grid(images: Tensor, settings: AugmentationSettings, rng: torch.Generator) -> Tensor:
    """Return sampling positions ``(B, *S, D)`` of a small random affine map, in grid_sample's units."""
    dims = images.ndim - 2
    batch, device = len(images), images.device
    size = torch.tensor([float(n) for n in reversed(images.shape[2:])], device=device)

    def noise(*shape: int) -> Tensor:
        return torch.rand((batch, *shape), generator=rng, device=device) * 2 - 1

    turn = noise(dims, dims).triu(1) * math.radians(settings.rotate)
    linear = torch.eye(dims, device=device) + turn - turn.mT + torch.diag_embed(noise(dims) * settings.scale)
    linear = linear * size[None, None, :] / size[None, :, None]  # grid_sample measures each axis by its own length
    shift = noise(dims) * settings.translate * 2 / size
    theta = torch.cat([linear, shift[..., None]], dim=-1)
    return F.affine_grid(theta, [batch, 1, *images.shape[2:]], align_corners=False)


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
