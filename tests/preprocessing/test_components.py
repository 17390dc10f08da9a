"""Connected components of masks."""

from __future__ import annotations

import numpy as np

from anomaly.preprocessing.components import largest_component


def test_only_the_largest_component_is_kept() -> None:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[0, 0, :3] = True
    mask[4:6, 4:6, 4:6] = True
    largest = largest_component(mask)
    assert largest.sum() == 8
    assert largest[4:6, 4:6, 4:6].all()


def test_voxels_that_share_only_an_edge_are_not_connected() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 0] = mask[1, 1, 1] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_single_component_and_an_empty_mask_stay_as_they_are() -> None:
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    assert not largest_component(empty).any()
    assert largest_component(full).all()
