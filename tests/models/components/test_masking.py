from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.models.components.masking import Lattice, without_cubes

LATTICE = Lattice(shape=(5, 7, 6), edges=(2, 3, 4), before=(1, 0, 3))


def cube_numbers() -> Tensor:
    """Return the number of the cube of each voxel."""
    axes = [(torch.arange(n) + before) // edge
            for n, before, edge in zip(LATTICE.shape, LATTICE.before, LATTICE.edges, strict=True)]  # fmt: skip
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    return ((i * 100 + j) * 100 + k)[None, None]


def volumes() -> tuple[Tensor, Tensor]:
    """Return volumes and their foreground, more than half of the voxels."""
    rng = torch.Generator().manual_seed(0)
    foreground = (torch.rand(40, 1, *LATTICE.shape, generator=rng) < 0.7).float()
    return (1 + torch.rand(foreground.shape, generator=rng)) * foreground, foreground


def lose(share: float, fill: str) -> tuple[Tensor, Tensor]:
    values, foreground = volumes()
    shares = torch.full((len(values), 1, 1, 1, 1), share)
    return without_cubes(values, foreground, LATTICE, shares, fill, torch.Generator().manual_seed(1))


def test_a_voxel_shows_the_value_of_its_cube() -> None:
    spread = LATTICE.spread(torch.arange(3 * 3 * 3.0).reshape(1, 1, 3, 3, 3))
    assert spread.shape[2:] == LATTICE.shape
    pairs = set(zip(spread.flatten().tolist(), cube_numbers().flatten().tolist(), strict=True))
    assert len(pairs) == len({value for value, _ in pairs}) == len({cube for _, cube in pairs})


def test_a_lost_cube_is_lost_whole_and_others_stay() -> None:
    values, foreground = volumes()
    after, lost = lose(0.4, "zero")
    for cube in cube_numbers().unique():
        inside = (cube_numbers() == cube) & (foreground > 0)
        gone = torch.where(inside, lost, 0.0).flatten(1).sum(1)
        assert ((gone == 0) | (gone == inside.flatten(1).sum(1))).all()
    torch.testing.assert_close(after, values * (lost == 0))
    assert abs(float(lost.sum() / foreground.sum()) - 0.4) < 0.1


def test_a_cube_is_filled_with_the_mean_of_its_foreground() -> None:
    values, foreground = volumes()
    after, _ = lose(1.0, "mean")
    inside = (cube_numbers() == cube_numbers()[0, 0, 2, 3, 2]) & (foreground > 0)
    for n in range(len(values)):
        expected = values[n][inside[n]].mean().expand(int(inside[n].sum()))
        torch.testing.assert_close(after[n][inside[n]], expected)
    assert (after[foreground == 0] == 0).all()


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_nothing_is_lost_of_volumes_that_lose_no_share(fill: str) -> None:
    after, lost = lose(0.0, fill)
    assert torch.equal(after, volumes()[0])
    assert lost.sum() == 0


def test_lattices_lie_anywhere() -> None:
    host = np.random.default_rng(0)
    drawn = [Lattice.drawn((5, 7, 6), (2, 3, 4), host).before for _ in range(200)]
    assert set(drawn) == {(i, j, k) for i in range(2) for j in range(3) for k in range(4)}
