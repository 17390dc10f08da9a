"""Smoothing inside a mask."""

from __future__ import annotations

import numpy as np

from anomaly.core.smoothing import sigma_in_voxels, smooth_inside
from anomaly.core.volume import Geometry
from tests.scoring.factory import SHAPE, ball


def test_a_constant_stays_constant_up_to_the_edge_of_the_mask() -> None:
    mask = ball()
    smoothed = smooth_inside(np.where(mask, 3.0, 0).astype(np.float32), mask, (1.0, 1.0, 1.0))

    np.testing.assert_allclose(smoothed[mask], 3.0, rtol=1e-5)
    assert not smoothed[~mask].any()


def test_values_outside_the_mask_have_no_influence() -> None:
    mask = ball()
    values = np.where(mask, 0, 1000).astype(np.float32)

    assert not smooth_inside(values, mask, (2.0, 2.0, 2.0)).any()


def test_a_gaussian_is_narrower_in_larger_voxels() -> None:
    grid = Geometry((8, 9, 10), np.diag([4.0, 4.0, 2.0, 1.0]))
    assert sigma_in_voxels(4.0, grid) == (1.0, 1.0, 2.0)


def test_a_sigma_of_0_changes_nothing_inside() -> None:
    mask, values = ball(), np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)

    np.testing.assert_array_equal(smooth_inside(values, mask, (0, 0, 0)), np.where(mask, values, 0))
