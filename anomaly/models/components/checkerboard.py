"""Patches in the colours of a checkerboard, so that a few sets cover an image. A building block, not a family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def checkerboard(shape: Sequence[int], patch: Sequence[float], colours: int, origins: Tensor) -> Tensor:
    """Return the colour 0 … ``colours`` − 1 of the patch that each voxel lies in, int64 ``(B, 1, *shape)``.

    Patches that share a face have different colours.

    Parameters
    ----------
    shape
        Of an image (2D) or volume (3D), in voxels.
    patch
        Edges of a patch in voxels, along each axis; not necessarily whole numbers.
    colours
        1 (all one patch set), 2 or 4; with 4 in 2D no patch touches another of its colour, not even at a corner.
    origins
        ``(B, D)`` where on the board each image begins, in voxels.
    """
    strides = (1, colours // 2, colours - 1)
    total = torch.zeros((len(origins), 1, *[1] * len(shape)), dtype=torch.long, device=origins.device)
    for axis, (n, edge) in enumerate(zip(shape, patch, strict=True)):
        cells = ((torch.arange(n, device=origins.device) + origins[:, axis : axis + 1]) / edge).floor().long()
        across = [n if other == axis else 1 for other in range(len(shape))]
        total = total + strides[axis] * cells.reshape(-1, 1, *across)
    return total % colours
