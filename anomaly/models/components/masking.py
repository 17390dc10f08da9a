"""Random cubes of a volume that are lost, as masked autoencoders learn from. A building block, not a family.

Space is cut into the cubes of a lattice that lies elsewhere every time. Each cube is lost with the same chance, and
with it all that is inside but, where that is what fills it, the mean.

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
class Lattice:
    """Cubes that cover volumes ``(B, 1, *S)``.

    Parameters
    ----------
    shape
        S, three axes.
    edges
        Voxels along the edges of a cube.
    before
        Voxels by which the first cube begins before the volume.
    """

    shape: tuple[int, ...]
    edges: tuple[int, ...]
    before: tuple[int, ...]

    @classmethod
    def drawn(cls, shape: Sequence[int], edges: Sequence[int], host: np.random.Generator) -> Lattice:
        """Return a lattice that lies somewhere."""
        return cls(tuple(shape), tuple(edges), tuple(int(host.integers(edge)) for edge in edges))

    def means(self, values: Tensor) -> Tensor:
        """Return the mean of each cube; outside the volume all is 0."""
        widths: list[int] = []
        for n, edge, before in zip(reversed(self.shape), reversed(self.edges), reversed(self.before), strict=True):
            widths += [before, -(n + before) % edge]
        return F.avg_pool3d(F.pad(values, widths), self.edges)

    def spread(self, cubes: Tensor) -> Tensor:
        """Return volumes that show, everywhere in a cube, the value of the cube."""
        for axis, (n, edge, before) in enumerate(zip(self.shape, self.edges, self.before, strict=True), start=2):
            cubes = cubes.repeat_interleave(edge, axis).narrow(axis, before, n)
        return cubes


def without_cubes(
    volumes: Tensor, foreground: Tensor, lattice: Lattice, share: Tensor, fill: str, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return volumes that have lost cubes, and where, 0 or 1; both ``(B, 1, *S)``.

    Parameters
    ----------
    volumes, foreground
        ``(B, 1, *S)``; the foreground is 0 or 1, and only there something is lost.
    lattice
        Of the cubes.
    share
        Of the cubes that each volume loses on average, ``(B, 1, 1, 1, 1)``.
    fill
        ``"mean"``: a lost cube shows the mean of its foreground; ``"zero"``: it shows 0.
    rng
        On the device of the volumes.
    """
    inside = lattice.means(foreground)
    chosen = torch.rand(inside.shape, generator=rng, device=volumes.device) < share
    lost = lattice.spread(chosen.float()) * foreground
    if fill == "zero":
        return volumes * (1 - lost), lost
    filling = lattice.spread(lattice.means(volumes * foreground) / inside.clamp_min(1e-6))
    return torch.lerp(volumes, filling, lost), lost
