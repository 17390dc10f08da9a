"""Simplex noise: smooth noise of a given scale, in octaves.

A skewed lattice divides space into simplices (triangles, tetrahedra). Every lattice point has a random unit vector,
its gradient g. The noise at a position p is a sum over the corners c of its simplex, with the offsets d_c = p − c:

    n(p) = Σ_c max(0, r² − |d_c|²)⁴ · (g_c · d_c),    r² = ½

It is 0 at the lattice points and smooth everywhere. Octaves are summed, each with twice the frequency and a smaller
amplitude than the one before, so that the noise is about as rough as anatomy.

Source: Perlin 2001, "Noise hardware" (lattice and kernel); Wyatt et al. 2022, "AnoDDPM" (octaves, as noise of a
diffusion model).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

N_GRADIENTS = 256  # size of the table of gradients; they repeat after as many lattice points
SQUARED_RADIUS = 0.5  # r² of the kernel, lattice units


def simplex_field(
    batch: int,
    shape: Sequence[int],
    grain: Sequence[float],
    rng: torch.Generator,
    octaves: int = 4,
    persistence: float = 0.7,
) -> Tensor:
    """Return simplex noise ``(batch, 1, *shape)`` on the device of ``rng``; each image has mean 0 and SD 1.

    Parameters
    ----------
    shape
        Shape of an image (2D) or volume (3D), samples.
    grain
        Distance between lattice points of the first octave along each axis, samples; each further octave halves it.
    octaves
        Number of octaves.
    persistence
        Amplitude of each octave relative to the one before.
    """
    dims, device = len(shape), rng.device
    axes = [torch.arange(n, device=device) / size for n, size in zip(shape, grain, strict=True)]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    total = torch.zeros(batch, positions.shape[1], device=device)
    for octave in range(octaves):
        origin = torch.rand((batch, dims, 1), generator=rng, device=device) * N_GRADIENTS
        total += persistence**octave * _noise(positions * 2**octave + origin, rng)
    total -= total.mean(dim=1, keepdim=True)
    total /= total.std(dim=1, keepdim=True).clamp_min(1e-6)
    return total.reshape(batch, 1, *shape)


def _noise(positions: Tensor, rng: torch.Generator) -> Tensor:
    """Return one octave ``(B, N)`` at positions ``(B, D, N)``, with a new table of gradients for each image."""
    batch, dims, _ = positions.shape
    device = positions.device
    order = torch.stack([torch.randperm(N_GRADIENTS, generator=rng, device=device) for _ in range(batch)])
    gradients = torch.randn((batch, N_GRADIENTS, dims), generator=rng, device=device)
    gradients /= gradients.norm(dim=2, keepdim=True)
    skew, unskew = (math.sqrt(dims + 1) - 1) / dims, (1 - 1 / math.sqrt(dims + 1)) / dims
    cell = (positions + skew * positions.sum(dim=1, keepdim=True)).floor()
    offset_in_cell = positions - (cell - unskew * cell.sum(dim=1, keepdim=True))
    # The corners of the simplex are reached from the cell's corner by one step along each axis, in the order of the
    # offset's components, largest first.
    rank = offset_in_cell.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    noise = torch.zeros_like(positions[:, 0])
    for corner in range(dims + 1):
        steps = (rank < corner).to(positions.dtype)
        offset = offset_in_cell - steps + unskew * corner
        gradient = _gradients_at(cell + steps, order, gradients)
        kernel = (SQUARED_RADIUS - (offset**2).sum(dim=1)).clamp_min_(0) ** 4
        noise += kernel * (gradient * offset).sum(dim=1)
    return noise


def _gradients_at(lattice: Tensor, order: Tensor, gradients: Tensor) -> Tensor:
    """Return the gradients ``(B, D, N)`` of lattice points ``(B, D, N)``, hashed one axis after another."""
    index = torch.zeros_like(lattice[:, 0], dtype=torch.long)
    for axis in range(lattice.shape[1]):
        index = order.gather(1, (index + lattice[:, axis].long()) % N_GRADIENTS)
    return gradients.gather(1, index[:, :, None].expand(-1, -1, gradients.shape[2])).mT
