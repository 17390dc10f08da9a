from __future__ import annotations

import pytest
import torch

from anomaly.models.components.checkerboard import checkerboard


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
        apply_mask = colour.unflatten(axis, (4, 3))
        assert (apply_mask == apply_mask.narrow(axis + 1, 0, 1)).all()


def test_four_colours_in_two_dimensions_do_not_even_touch_at_corners() -> None:
    colour = checkerboard((8, 8), (1.0, 1.0), 4, torch.zeros(1, 2))[0, 0]
    assert (colour[1:, 1:] != colour[:-1, :-1]).all()
    assert (colour[1:, :-1] != colour[:-1, 1:]).all()


def test_an_offset_moves_the_board_of_one_image() -> None:
    still, moved = checkerboard((12, 12), (4.0, 4.0), 2, torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert torch.equal(moved[0, :-2], still[0, 2:])


@pytest.mark.parametrize("shape", [(7, 10), (5, 6, 7)])
@pytest.mark.parametrize("colours", [2, 4])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_colours_cover_every_position_once_and_neighbouring_squares_differ(
    shape: tuple[int, ...], colours: int, side: int
) -> None:
    board = checkerboard(shape, [side] * len(shape), colours, torch.zeros((1, len(shape)), dtype=torch.long))
    assert board.shape == (1, 1, *shape)
    assert torch.equal(
        sum(((board == k).int() for k in range(colours)), torch.tensor(0)), torch.ones_like(board).int()
    )
    for axis in range(2, 2 + len(shape)):
        there = board.narrow(axis, side, board.shape[axis] - side)
        assert (there != board.narrow(axis, 0, there.shape[axis])).all()


def test_whole_origins_move_the_board_of_each_image() -> None:
    boards = checkerboard((8, 8), (2, 2), 2, torch.tensor([[0, 0], [1, 0], [2, 2]]))
    assert torch.equal(boards[1, :, :-1], boards[0, :, 1:])
    assert torch.equal(boards[2], boards[0])
