"""Random boxes that hide parts of an image from an encoder (context encoding). A building block, not a family.

Source: Zimmerer et al. 2018, "Context-encoding Variational Autoencoder for Unsupervised Anomaly Detection", after
Pathak et al. 2016, "Context Encoders".
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly.models.components.random_fields import bernoulli, uniform

MAX_BOXES = 3
SIDE_RANGE = (0.1, 0.5)  # side of a box, as a share of the side of the image


def hide_boxes(images: Tensor, mask: Tensor, probability: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide boxes in some of the images; each box has a constant random intensity.

    Parameters
    ----------
    images
        ``(B, C, *S)``; a box covers all channels.
    mask
        ``(B, 1, *S)`` bool; boxes are clipped to it.
    probability
        Probability that an image gets boxes, one to three.
    rng
        Generator on the device of the images.

    Returns
    -------
    inputs
        ``(B, C, *S)``, images with boxes.
    has_boxes
        ``(B,)`` bool.
    """
    every = tuple(range(1, images.ndim))
    lowest, highest = images.amin(every, keepdim=True), images.amax(every, keepdim=True)
    has_boxes, inputs = bernoulli(images, probability, rng), images
    number = uniform(images, 1, MAX_BOXES + 1, rng).floor()
    for n in range(MAX_BOXES):
        level = lowest + uniform(images, 0.0, 1.0, rng) * (highest - lowest)
        inputs = torch.where(_box(mask, rng) & mask & has_boxes & (number > n), level, inputs)
    return inputs, has_boxes.flatten()


def _box(mask: Tensor, rng: torch.Generator) -> Tensor:
    """Return one random box per image, ``(B, 1, *S)`` bool."""
    inside = torch.ones_like(mask)
    for axis, length in enumerate(mask.shape[2:], start=2):
        side, middle = (uniform(mask, low, high, rng) for low, high in (SIDE_RANGE, (0.0, 1.0)))
        positions = (torch.arange(length, device=mask.device) + 0.5) / length
        positions = positions.reshape([-1 if other == axis else 1 for other in range(mask.ndim)])
        inside = inside & ((positions - middle).abs() < side / 2)
    return inside
