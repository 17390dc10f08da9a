import numpy as np

from anomaly.scoring.postprocess import eroded, median_inside
from tests.scoring.factory import SHAPE, ball


def test_a_median_of_one_voxel_changes_nothing_inside() -> None:
    mask, values = ball(), np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)

    np.testing.assert_array_equal(median_inside(values, mask, 1), np.where(mask, values, 0))


def test_a_median_filter_removes_a_single_bright_voxel() -> None:
    mask, values = ball(), np.zeros(SHAPE, dtype=np.float32)
    values[8, 9, 6] = 50

    assert median_inside(values, mask, 3).max() == 0


def test_erosion_is_measured_in_millimetres_and_starts_at_the_edge_of_the_field_of_view_too() -> None:
    mask = np.ones((9, 9, 9), dtype=bool)

    assert eroded(mask, 0, (2.0, 2.0, 2.0)).all()
    assert eroded(mask, 2.0, (2.0, 2.0, 2.0)).sum() == 7**3
