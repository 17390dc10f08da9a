"""Boxes that are hidden from an encoder, which must rebuild what was there. A building block, not a family.

Source: Zimmerer et al. 2018, "Context-encoding Variational Autoencoder for Unsupervised Anomaly Detection", after
Pathak et al. 2016, "Context Encoders".
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly.models.components.random_fields import chance, uniform

MOST_BOXES = 3
SIDE = (0.1, 0.5)  # of a box, as a share of the image's side


def hide_boxes(images: Tensor, mask: Tensor, share: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images some of which have boxes of one intensity each, and which of them those are.

    Parameters
    ----------
    images
        ``(B, C, *S)``; a box runs through all channels.
    mask
        ``(B, 1, *S)`` bool; boxes do not reach beyond it.
    share
        Chance that an image gets boxes, one to three.
    rng
        On the device of the images.

    Returns
    -------
    shown
        ``(B, C, *S)``.
    hidden
        ``(B,)`` bool: which images have boxes.
    """
    every = tuple(range(1, images.ndim))
    lowest, highest = images.amin(every, keepdim=True), images.amax(every, keepdim=True)
    hidden, shown = chance(images, share, rng), images
    number = uniform(images, 1, MOST_BOXES + 1, rng).floor()
    for n in range(MOST_BOXES):
        level = lowest + uniform(images, 0.0, 1.0, rng) * (highest - lowest)
        shown = torch.where(_box(mask, rng) & mask & hidden & (number > n), level, shown)
    return shown, hidden.flatten()


def nothing_hidden(images: Tensor) -> Tensor:
    """Return that none of the images has boxes, ``(B,)`` bool."""
    return torch.zeros(len(images), dtype=torch.bool, device=images.device)


def _box(mask: Tensor, rng: torch.Generator) -> Tensor:
    """Return one random box per image, ``(B, 1, *S)`` bool."""
    inside = torch.ones_like(mask)
    for axis, length in enumerate(mask.shape[2:], start=2):
        side, middle = (uniform(mask, low, high, rng) for low, high in (SIDE, (0.0, 1.0)))
        positions = (torch.arange(length, device=mask.device) + 0.5) / length
        positions = positions.reshape([-1 if other == axis else 1 for other in range(mask.ndim)])
        inside = inside & ((positions - middle).abs() < side / 2)
    return inside
