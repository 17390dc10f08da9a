"""Masking of random cubes of a volume, as in masked autoencoders. A building block, not a family.

The volume is divided into cubes by a grid with a random offset. Each cube is masked with the same probability: its
voxels are set to 0, or to the mean of its foreground.

Source: He et al. 2022, "Masked autoencoders are scalable vision learners".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


@dataclass(frozen=True)
class CubeGrid:
    """Grid of cubes that covers volumes ``(B, 1, *S)``.

    Parameters
    ----------
    shape
        S, three axes.
    edges
        Edge lengths of a cube, voxels.
    offset
        Number of voxels by which the first cube starts before the volume, along each axis.
    """

    shape: tuple[int, ...]
    edges: tuple[int, ...]
    offset: tuple[int, ...]

    @classmethod
    def random(cls, shape: Sequence[int], edges: Sequence[int], host: np.random.Generator) -> CubeGrid:
        """Return a grid with a random offset."""
        return cls(tuple(shape), tuple(edges), tuple(int(host.integers(edge)) for edge in edges))

    def mean_per_cube(self, values: Tensor) -> Tensor:
        """Return the mean of each cube ``(B, 1, *cubes)`` for values ``(B, 1, *S)``, which are 0 outside S."""
        widths: list[int] = []
        for n, edge, offset in zip(reversed(self.shape), reversed(self.edges), reversed(self.offset), strict=True):
            widths += [offset, -(n + offset) % edge]
        return F.avg_pool3d(F.pad(values, widths), self.edges)

    def to_voxels(self, cubes: Tensor) -> Tensor:
        """Return volumes ``(B, 1, *S)`` in which each voxel has the value of its cube."""
        for axis, (n, edge, offset) in enumerate(zip(self.shape, self.edges, self.offset, strict=True), start=2):
            cubes = cubes.repeat_interleave(edge, axis).narrow(axis, offset, n)
        return cubes


def mask_cubes(
    volumes: Tensor, foreground: Tensor, grid: CubeGrid, share: Tensor, fill: str, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask random cubes of volumes.

    Parameters
    ----------
    volumes, foreground
        ``(B, 1, *S)``; the foreground is 0 or 1, and only foreground is masked.
    grid
        Grid of the cubes.
    share
        ``(B, 1, 1, 1, 1)`` expected share of masked cubes in each volume.
    fill
        Value of masked voxels. ``"mean"``: mean of the cube's foreground; ``"zero"``: 0.
    rng
        On the device of the volumes.

    Returns
    -------
    volumes
        ``(B, 1, *S)`` with masked cubes.
    masked
        ``(B, 1, *S)``, 1 in masked voxels, else 0.
    """
    foreground_share = grid.mean_per_cube(foreground)
    chosen = torch.rand(foreground_share.shape, generator=rng, device=volumes.device) < share
    masked = grid.to_voxels(chosen.float()) * foreground
    if fill == "zero":
        return volumes * (1 - masked), masked
    mean = grid.to_voxels(grid.mean_per_cube(volumes * foreground) / foreground_share.clamp_min(1e-6))
    return torch.lerp(volumes, mean, masked), masked
