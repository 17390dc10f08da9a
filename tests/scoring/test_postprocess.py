import numpy as np

from anomaly.core.volume import Geometry
from anomaly.scoring.postprocess import eroded, median_inside, sigma_in_voxels, smooth_inside
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


def test_a_sigma_of_0_and_a_median_of_one_voxel_change_nothing() -> None:
    mask, values = ball(), np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)

    np.testing.assert_array_equal(smooth_inside(values, mask, (0, 0, 0)), np.where(mask, values, 0))
    np.testing.assert_array_equal(median_inside(values, mask, 1), np.where(mask, values, 0))


def test_a_median_filter_removes_a_single_bright_voxel() -> None:
    mask, values = ball(), np.zeros(SHAPE, dtype=np.float32)
    values[8, 9, 6] = 50

    assert median_inside(values, mask, 3).max() == 0


def test_erosion_is_measured_in_millimetres_and_starts_at_the_edge_of_the_field_of_view_too() -> None:
    mask = np.ones((9, 9, 9), dtype=bool)

    assert eroded(mask, 0, (2.0, 2.0, 2.0)).all()
    assert eroded(mask, 2.0, (2.0, 2.0, 2.0)).sum() == 7**3


def test_a_gaussian_is_narrower_in_larger_voxels() -> None:
    grid = Geometry((8, 9, 10), np.diag([4.0, 4.0, 2.0, 1.0]))
    assert sigma_in_voxels(4.0, grid) == (1.0, 1.0, 2.0)
