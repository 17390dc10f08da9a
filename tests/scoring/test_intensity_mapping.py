from __future__ import annotations

import numpy as np
import pytest

from anomaly.scoring.intensity_mapping import IntensityMapping

MAPPING = IntensityMapping(found=(0.2, 0.5, 0.7), expected=(0.3, 0.5, 0.8))
VALUES = np.array([[[-1.0, 0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 2.0]]], dtype=np.float32)
INSIDE = np.ones(VALUES.shape, dtype=bool)


def test_landmarks_are_mapped_to_landmarks_linearly_between_and_shifted_beyond() -> None:
    expected = [-0.9, 0.1, 0.3, 0.4, 0.5, 0.65, 0.8, 2.1]
    np.testing.assert_allclose(MAPPING.apply(VALUES, INSIDE)[0, 0], expected, rtol=1e-5)


def test_voxels_outside_the_mask_do_not_change() -> None:
    np.testing.assert_array_equal(MAPPING.apply(VALUES, ~INSIDE), VALUES)


def test_the_inverse_maps_back() -> None:
    there = MAPPING.apply(VALUES, INSIDE)
    np.testing.assert_allclose(MAPPING.inverse.apply(there, INSIDE), VALUES, atol=1e-6)


@pytest.mark.parametrize("found", [(0.0, 0.0, 0.5), (0.5, 0.5, 0.5)])
def test_equal_landmarks_as_of_clipped_intensities_give_an_increasing_mapping(found: tuple[float, ...]) -> None:
    values = np.linspace(-0.5, 1.5, 101, dtype=np.float32).reshape(1, 1, -1)
    mapped = IntensityMapping(found, (0.1, 0.3, 0.6)).apply(values, np.ones(values.shape, dtype=bool))
    assert np.isfinite(mapped).all()
    assert (np.diff(mapped[0, 0]) >= 0).all()
