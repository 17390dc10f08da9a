"""Overlap of two masks."""

from __future__ import annotations

import numpy as np

from anomaly.core.overlap import dice


def test_equal_masks_have_dice_one_and_disjoint_masks_zero() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[:2] = True
    assert dice(mask, mask) == 1.0
    assert dice(mask, ~mask) == 0.0


def test_dice_is_twice_the_intersection_over_the_sum_of_volumes() -> None:
    two_voxels, four_voxels = np.zeros((2, 2, 2), dtype=bool), np.zeros((2, 2, 2), dtype=bool)
    two_voxels[0, 0] = True
    four_voxels[0] = True
    assert dice(two_voxels, four_voxels) == dice(four_voxels, two_voxels) == 2 * 2 / (2 + 4)


def test_two_empty_masks_agree_completely_and_one_empty_mask_not_at_all() -> None:
    empty, full = np.zeros((2, 2, 2), dtype=bool), np.ones((2, 2, 2), dtype=bool)
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == dice(full, empty) == 0.0
