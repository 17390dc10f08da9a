"""Simplex noise: band-limited noise whose grain is about one size, in octaves.

Space is cut into simplices (triangles, tetrahedra) by a skewed lattice. Every lattice point has a random direction
g; a position p gets from each corner c of its simplex, with the offset d = p − c,

    n(p) = Σ_c max(0, r² − |d|²)⁴ · (g_c · d),    r² = ½

so that noise is 0 at the lattice points and smooth everywhere. Octaves of doubled frequency and falling strength
add up to noise as rough as anatomy.

Source: Perlin 2001, "Noise hardware" (the lattice and its kernel); Wyatt et al. 2022, "AnoDDPM" (octaves, as noise
for diffusion models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TABLE = 256  # lattice points before directions repeat
REACH = 0.5  # r²


def simplex_field(
    batch: int,
    shape: Sequence[int],
    grain: Sequence[float],
    rng: torch.Generator,
    octaves: int = 4,
    persistence: float = 0.7,
) -> Tensor:
    """Return simplex noise ``(batch, 1, *shape)`` of mean 0 and SD 1 (of each image), on the device of ``rng``.

    Parameters
    ----------
    shape
        Of an image (2D) or volume (3D), in samples.
    grain
        Samples between lattice points of the first octave, along each axis; every further octave halves it.
    octaves, persistence
        How many octaves are added up, and the strength of each relative to the one before.
    """
    dims, device = len(shape), rng.device
    axes = [torch.arange(n, device=device) / size for n, size in zip(shape, grain, strict=True)]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    total = torch.zeros(batch, positions.shape[1], device=device)
    for octave in range(octaves):
        moved = torch.rand((batch, dims, 1), generator=rng, device=device) * TABLE
        total += persistence**octave * _noise(positions * 2**octave + moved, rng)
    total -= total.mean(dim=1, keepdim=True)
    total /= total.std(dim=1, keepdim=True).clamp_min(1e-6)
    return total.reshape(batch, 1, *shape)


def _noise(positions: Tensor, rng: torch.Generator) -> Tensor:
    """Return one octave ``(B, N)`` at positions ``(B, D, N)``, with directions of its own for each image."""
    batch, dims, _ = positions.shape
    device = positions.device
    order = torch.stack([torch.randperm(TABLE, generator=rng, device=device) for _ in range(batch)])
    directions = torch.randn((batch, TABLE, dims), generator=rng, device=device)
    directions /= directions.norm(dim=2, keepdim=True)
    skew, unskew = (math.sqrt(dims + 1) - 1) / dims, (1 - 1 / math.sqrt(dims + 1)) / dims
    cell = (positions + skew * positions.sum(dim=1, keepdim=True)).floor()
    inside = positions - (cell - unskew * cell.sum(dim=1, keepdim=True))
    # From the cell's corner one walks along the axes in the order of the offset's size, largest first.
    turn = inside.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    noise = torch.zeros_like(positions[:, 0])
    for walked in range(dims + 1):
        step = (turn < walked).to(positions.dtype)
        offset = inside - step + unskew * walked
        direction = _directions_at(cell + step, order, directions)
        kernel = (REACH - (offset**2).sum(dim=1)).clamp_min_(0) ** 4
        noise += kernel * (direction * offset).sum(dim=1)
    return noise


def _directions_at(lattice: Tensor, order: Tensor, directions: Tensor) -> Tensor:
    """Return the directions ``(B, D, N)`` of lattice points ``(B, D, N)``, hashed axis by axis."""
    index = torch.zeros_like(lattice[:, 0], dtype=torch.long)
    for axis in range(lattice.shape[1]):
        index = order.gather(1, (index + lattice[:, axis].long()) % TABLE)
    return directions.gather(1, index[:, :, None].expand(-1, -1, directions.shape[2])).mT
