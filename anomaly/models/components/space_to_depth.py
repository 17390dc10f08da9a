"""Space-to-depth: neighbouring voxels become channels, so that fewer positions are computed. A building block."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn


class FullPrecision(nn.Module):
    """A part of a network that runs in float32 even if the rest runs in bfloat16.

    At the coarsest level, which has a few voxels only, bfloat16 convolutions give non-finite weight gradients on a
    CPU.
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
    """Return images ``(B, C, *S)`` as ``(B, C·fᴰ, *S/f)``: the f·f(·f) voxels of each block become channels.

    It is exactly inverted by :func:`depth_to_space`. The factor f must divide S.
    """
    if factor == 1 or images.ndim == 4:
        return F.pixel_unshuffle(images, factor) if factor > 1 else images
    b, c, i, j, k = images.shape
    blocks = images.reshape(b, c, i // factor, factor, j // factor, factor, k // factor, factor)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, -1, i // factor, j // factor, k // factor)


def depth_to_space(images: Tensor, factor: int) -> Tensor:
    """Invert :func:`space_to_depth`: ``(B, C·fᴰ, *S/f)`` becomes ``(B, C, *S)``."""
    if factor == 1 or images.ndim == 4:
        return F.pixel_shuffle(images, factor) if factor > 1 else images
    b, c, i, j, k = images.shape
    blocks = images.reshape(b, c // factor**3, factor, factor, factor, i, j, k)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, i * factor, j * factor, k * factor)
