"""Fitting affine transforms with ITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention

from anomaly.core.volume import Geometry
from anomaly.preprocessing.affine_fit import FixedImage, fit_affine, from_itk, metric_value, to_itk

GRID = Geometry((24, 26, 22), np.array([[4.0, 0, 0, -46], [0, 4, 0, -50], [0, 0, 4, -42], [0, 0, 0, 1]]))
SHIFT = np.array([[1.0, 0, 0, 3], [0, 1, 0, -4], [0, 0, 1, 2], [0, 0, 0, 1]])


def ellipsoids(transform: np.ndarray) -> np.ndarray:
    """Return an image ``(I, J, K)`` of two soft ellipsoids, moved by ``(4, 4)``."""
    positions = GRID.to_world(np.moveaxis(np.indices(GRID.shape), 0, -1)) - transform[:3, 3]
    large = np.exp(-((positions / [26.0, 34.0, 22.0]) ** 2).sum(-1))
    small = np.exp(-(((positions - [12.0, 6.0, 4.0]) / 10.0) ** 2).sum(-1))
    return np.asarray(100 * large + 60 * small, dtype=np.float32)


@pytest.fixture(scope="module")
def fixed() -> FixedImage:
    whole_grid = np.ones(GRID.shape, dtype=np.uint8)
    return FixedImage(to_itk(ellipsoids(np.eye(4)), GRID), to_itk(whole_grid, GRID), np.zeros(3))


def test_voxels_survive_the_conversion_to_itk() -> None:
    voxels = ellipsoids(np.eye(4))
    image = to_itk(voxels, GRID)
    assert image.GetSize() == GRID.shape
    assert image.TransformIndexToPhysicalPoint((1, 2, 3)) == pytest.approx(tuple(GRID.to_world((1, 2, 3))))
    np.testing.assert_array_equal(from_itk(image), voxels)


@pytest.mark.parametrize("metric", ["mutual_information", "correlation"])
def test_the_metric_is_higher_for_the_correct_transform(fixed: FixedImage, metric: str) -> None:
    moving = to_itk(ellipsoids(SHIFT), GRID)
    assert metric_value(fixed, moving, SHIFT, metric) > metric_value(fixed, moving, np.eye(4), metric)


@pytest.mark.parametrize("sampling", [1.0, 0.5])
def test_a_known_transform_is_found(fixed: FixedImage, sampling: float) -> None:
    moving = to_itk(ellipsoids(SHIFT), GRID)
    found, value = fit_affine(fixed, moving, np.eye(4), "correlation", 2.0, 100, sampling)
    np.testing.assert_allclose(found[:3, 3], SHIFT[:3, 3], atol=0.5)
    np.testing.assert_allclose(found[:3, :3], np.eye(3), atol=0.03)
    assert value > metric_value(fixed, moving, np.eye(4), "correlation")


def test_a_fit_is_reproducible_and_leaves_the_number_of_threads_unchanged(fixed: FixedImage) -> None:
    n_threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    moving = to_itk(ellipsoids(SHIFT), GRID)
    first, second = (fit_affine(fixed, moving, np.eye(4), "mutual_information", 2.0, 10, 0.5) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == n_threads
