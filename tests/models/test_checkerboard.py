from __future__ import annotations

import pytest
import torch

from anomaly.models.checkerboard import checkerboard


@pytest.mark.parametrize("shape", [(30, 41), (13, 22, 17)])
@pytest.mark.parametrize("colours", [1, 2, 4])
def test_every_voxel_has_one_colour_and_all_colours_cover_much_the_same(
    shape: tuple[int, ...], colours: int
) -> None:
    colour = checkerboard(shape, [4.0] * len(shape), colours, torch.zeros(2, len(shape)))
    assert colour.shape == (2, 1, *shape)
    counts = colour.flatten().bincount()
    assert len(counts) == colours
    assert counts.min() > 0.75 * counts.max()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("colours", [2, 4])
def test_patches_that_share_a_face_differ(dims: int, colours: int) -> None:
    colour = checkerboard([12] * dims, [3.0] * dims, colours, torch.zeros(1, dims))[0, 0]
    for axis in range(dims):
        patches = colour.index_select(axis, torch.arange(1, 12, 3))
        assert (patches.diff(dim=axis) != 0).all()
        within = colour.unflatten(axis, (4, 3))
        assert (within == within.narrow(axis + 1, 0, 1)).all()


def test_four_colours_in_two_dimensions_do_not_even_touch_at_corners() -> None:
    colour = checkerboard((8, 8), (1.0, 1.0), 4, torch.zeros(1, 2))[0, 0]
    assert (colour[1:, 1:] != colour[:-1, :-1]).all()
    assert (colour[1:, :-1] != colour[:-1, 1:]).all()


def test_an_offset_moves_the_board_of_one_image() -> None:
    still, moved = checkerboard((12, 12), (4.0, 4.0), 2, torch.tensor([[0.0, 0.0], [0.5, 0.0]]))
    assert torch.equal(moved[0, :-2], still[0, 2:])
