from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.models.components.masking import CubeGrid, mask_cubes

GRID = CubeGrid(shape=(5, 7, 6), edges=(2, 3, 4), offset=(1, 0, 3))


def cube_numbers() -> Tensor:
    """Return the number of the cube of each voxel."""
    axes = [(torch.arange(n) + offset) // edge
            for n, offset, edge in zip(GRID.shape, GRID.offset, GRID.edges, strict=True)]  # fmt: skip
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    return ((i * 100 + j) * 100 + k)[None, None]


def volumes() -> tuple[Tensor, Tensor]:
    """Return volumes and their foreground, more than half of the voxels."""
    rng = torch.Generator().manual_seed(0)
    foreground = (torch.rand(40, 1, *GRID.shape, generator=rng) < 0.7).float()
    return (1 + torch.rand(foreground.shape, generator=rng)) * foreground, foreground


def masked(share: float, fill: str) -> tuple[Tensor, Tensor]:
    values, foreground = volumes()
    shares = torch.full((len(values), 1, 1, 1, 1), share)
    return mask_cubes(values, foreground, GRID, shares, fill, torch.Generator().manual_seed(1))


def test_each_voxel_has_the_value_of_its_cube() -> None:
    voxels = GRID.to_voxels(torch.arange(3 * 3 * 3.0).reshape(1, 1, 3, 3, 3))
    assert voxels.shape[2:] == GRID.shape
    pairs = set(zip(voxels.flatten().tolist(), cube_numbers().flatten().tolist(), strict=True))
    assert len(pairs) == len({value for value, _ in pairs}) == len({cube for _, cube in pairs})


def test_a_cube_is_masked_as_a_whole_and_other_voxels_are_unchanged() -> None:
    values, foreground = volumes()
    after, hidden = masked(0.4, "zero")
    for cube in cube_numbers().unique():
        inside = (cube_numbers() == cube) & (foreground > 0)
        n_hidden = torch.where(inside, hidden, 0.0).flatten(1).sum(1)
        assert ((n_hidden == 0) | (n_hidden == inside.flatten(1).sum(1))).all()
    torch.testing.assert_close(after, values * (hidden == 0))
    assert abs(float(hidden.sum() / foreground.sum()) - 0.4) < 0.1


def test_a_cube_is_filled_with_the_mean_of_its_foreground() -> None:
    values, foreground = volumes()
    after, _ = masked(1.0, "mean")
    inside = (cube_numbers() == cube_numbers()[0, 0, 2, 3, 2]) & (foreground > 0)
    for n in range(len(values)):
        expected = values[n][inside[n]].mean().expand(int(inside[n].sum()))
        torch.testing.assert_close(after[n][inside[n]], expected)
    assert (after[foreground == 0] == 0).all()


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_a_share_of_0_masks_nothing(fill: str) -> None:
    after, hidden = masked(0.0, fill)
    assert torch.equal(after, volumes()[0])
    assert hidden.sum() == 0


def test_a_random_grid_has_every_possible_offset() -> None:
    host = np.random.default_rng(0)
    offsets = [CubeGrid.random((5, 7, 6), (2, 3, 4), host).offset for _ in range(200)]
    assert set(offsets) == {(i, j, k) for i in range(2) for j in range(3) for k in range(4)}
