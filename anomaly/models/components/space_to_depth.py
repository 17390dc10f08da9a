"""Networks that see neighbouring voxels as channels: fewer positions to compute. A building block, not a family."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn


class FullPrecision(nn.Module):
    """A part of a network that runs in float32 even where the rest runs in bfloat16.

    At the coarsest level, of a few voxels, bfloat16 convolutions give non-finite weight gradients on CPU.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return ``part(*inputs)`` in float32."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            out: Tensor = self.part(*(tensor.float() for tensor in inputs))
            return out


def space_to_depth(images: Tensor, factor: int) -> Tensor:
    """Return ``(B, C·fᴰ, *S/f)``: neighbouring voxels as channels, losing nothing."""
    if factor == 1 or images.ndim == 4:
        return F.pixel_unshuffle(images, factor) if factor > 1 else images
    b, c, i, j, k = images.shape
    folded = images.reshape(b, c, i // factor, factor, j // factor, factor, k // factor, factor)
    return folded.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, -1, i // factor, j // factor, k // factor)


def depth_to_space(images: Tensor, factor: int) -> Tensor:
    """Undo :func:`space_to_depth`."""
    if factor == 1 or images.ndim == 4:
        return F.pixel_shuffle(images, factor) if factor > 1 else images
    b, c, i, j, k = images.shape
    unfolded = images.reshape(b, c // factor**3, factor, factor, factor, i, j, k)
    return unfolded.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, i * factor, j * factor, k * factor)
