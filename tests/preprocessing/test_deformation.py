"""Local growth from a non-linear registration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from anomaly.core.volume import FloatArray, Geometry
from anomaly.preprocessing.deformation import local_growth

GRID = Geometry((48, 56, 48), np.diag([3.0, 3.0, 3.0, 1.0]))
CENTRE = np.array([30.0, 28.0, 24.0])  # off the middle, voxels
RADIUS = 8.0  # voxels


def textured_ball() -> FloatArray:
    """Return a brain-like ball with smooth structure, 0 outside."""
    positions = np.moveaxis(np.indices(GRID.shape), 0, -1)
    inside = np.linalg.norm((positions - np.array(GRID.shape) / 2) / np.array(GRID.shape), axis=-1) < 0.45
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=GRID.shape), 2.0)
    return np.where(inside, 0.6 + 0.1 * noise / noise.std(), 0).astype(np.float32)


def expanded(image: FloatArray, factor: float) -> FloatArray:
    """Return the image with a ball of :data:`RADIUS` around :data:`CENTRE` expanded, fading to twice the radius."""
    positions = np.indices(image.shape, dtype=np.float64)
    offset = positions - CENTRE[:, None, None, None]
    fading = np.clip(2 - np.linalg.norm(offset, axis=0) / RADIUS, 0, 1)
    return ndimage.map_coordinates(image, positions - (1 - 1 / factor) * fading * offset, order=1).astype(
        np.float32
    )


def ball(radius: float) -> np.ndarray:
    positions = np.moveaxis(np.indices(GRID.shape), 0, -1)
    return np.asarray(np.linalg.norm(positions - CENTRE, axis=-1) < radius)


@pytest.fixture(scope="module")
def brain() -> FloatArray:
    return textured_ball()


def test_an_identical_brain_has_not_grown(brain: FloatArray) -> None:
    np.testing.assert_allclose(local_growth(brain, brain, GRID), 0, atol=1e-4)


def test_tissue_that_expanded_has_grown_and_its_surroundings_have_shrunk(brain: FloatArray) -> None:
    growth = local_growth(expanded(brain, 1.4), brain, GRID)
    around = ball(2 * RADIUS) & ~ball(1.5 * RADIUS)

    assert growth[ball(RADIUS / 2)].mean() == pytest.approx(3 * np.log(1.4), rel=0.5)
    assert growth[around].mean() < -0.05
    assert np.unravel_index(growth.argmax(), growth.shape) == pytest.approx(CENTRE, abs=RADIUS / 2)


@pytest.mark.slow
def test_tissue_that_shrank_has_negative_growth(brain: FloatArray) -> None:
    growth = local_growth(brain, expanded(brain, 1.4), GRID)
    assert growth[ball(RADIUS / 2)].mean() < -0.3


@pytest.mark.slow
def test_the_same_scan_gives_the_same_bits(brain: FloatArray) -> None:
    scan = expanded(brain, 1.3)
    np.testing.assert_array_equal(local_growth(scan, brain, GRID), local_growth(scan, brain, GRID))


def test_growth_is_float32_on_the_grid_of_the_scan(brain: FloatArray) -> None:
    growth = local_growth(brain, brain, GRID)
    assert growth.shape == GRID.shape
    assert growth.dtype == np.float32
