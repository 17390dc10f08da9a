"""Running mean and standard deviation."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.running_moments import RunningMoments


def _arrays(n: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 0.2, size=(n, 4, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("ddof", [0, 1])
def test_mean_and_sd_are_those_of_the_stacked_arrays(ddof: int) -> None:
    arrays = _arrays()
    moments = RunningMoments((4, 3, 2))
    for array in arrays:
        moments.add(array)
    assert moments.n_arrays == 7
    np.testing.assert_allclose(moments.mean(), arrays.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.sd(ddof), arrays.astype(np.float64).std(axis=0, ddof=ddof), rtol=1e-9)


@pytest.mark.parametrize("ddof", [0, 1])
def test_only_values_inside_the_mask_count(ddof: int) -> None:
    arrays = _arrays()
    masks = np.random.default_rng(1).random(arrays.shape) < 0.7
    masks[:2] = True  # at least two values everywhere
    moments = RunningMoments((4, 3, 2))
    for array, mask in zip(arrays, masks, strict=True):
        moments.add(array, mask)
    covered = np.where(masks, arrays.astype(np.float64), np.nan)
    np.testing.assert_array_equal(moments.count, masks.sum(axis=0))
    np.testing.assert_allclose(moments.mean(), np.nanmean(covered, axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.sd(ddof), np.nanstd(covered, axis=0, ddof=ddof), rtol=1e-9)


def test_an_element_that_no_array_covers_has_mean_and_sd_zero() -> None:
    moments = RunningMoments((2,))
    for value in (1.0, 3.0):
        moments.add(np.array([value, np.nan]), np.array([True, False]))
    np.testing.assert_array_equal(moments.mean(), [2.0, 0.0])
    np.testing.assert_array_equal(moments.sd(ddof=1), [np.sqrt(2.0), 0.0])


def test_the_variance_of_equal_values_is_not_negative() -> None:
    moments = RunningMoments((1000,))
    values = np.random.default_rng(2).random(1000)
    for _ in range(3):
        moments.add(values)
    assert (moments.variance() >= 0).all()
    assert moments.variance().max() < 1e-15
