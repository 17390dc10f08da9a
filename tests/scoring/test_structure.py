"""Maps of shape and structure."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.structure import (
    STRUCTURE_MAPS,
    local_correlation,
    local_texture,
    structure_evidence,
    structure_maps,
)

GRID = Geometry((40, 44, 40), np.diag([4.0, 4.0, 4.0, 1.0]))
LEFT, RIGHT = np.array([12, 22, 20]), np.array([27, 22, 20])  # mirrored positions: 12 + 27 = 40 - 1
SIGMA = (1.5, 1.5, 1.5)


def ball(centre: np.ndarray, radius: float) -> MaskArray:
    positions = np.moveaxis(np.indices(GRID.shape), 0, -1)
    return np.asarray(np.linalg.norm(positions - centre, axis=-1) < radius)


@pytest.fixture(scope="module")
def mask() -> MaskArray:
    return ball(np.array([19.5, 21.5, 19.5]), 18)


@pytest.fixture(scope="module")
def mean_image(mask: MaskArray) -> FloatArray:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=GRID.shape), 1.5)
    symmetric = noise + noise[::-1]
    return np.where(mask, 0.6 + 0.1 * symmetric / symmetric.std(), 0).astype(np.float32)


def test_a_scan_correlates_with_itself_at_any_contrast(mean_image: FloatArray, mask: MaskArray) -> None:
    other_contrast = np.where(mask, 0.2 + 0.5 * mean_image, 0).astype(np.float32)
    for scan, expected in ((mean_image, 1), (other_contrast, 1), (1 - mean_image, -1)):
        found = local_correlation(scan, mean_image, mask, SIGMA)
        np.testing.assert_allclose(found[mask], expected, atol=0.02)
        assert not found[~mask].any()


def test_the_correlation_is_lost_where_the_structure_is(mean_image: FloatArray, mask: MaskArray) -> None:
    lesion = ball(LEFT, 5)
    scan = np.where(lesion, mean_image[mask].mean(), mean_image).astype(np.float32)
    found = local_correlation(scan, mean_image, mask, SIGMA)
    assert found[ball(LEFT, 2)].max() < 0.5
    assert found[ball(RIGHT, 5)].min() > 0.95


def test_a_rougher_texture_has_more_detail(mean_image: FloatArray, mask: MaskArray) -> None:
    rng = np.random.default_rng(1)
    lesion = ball(LEFT, 5)
    detail = ndimage.gaussian_filter(rng.normal(size=GRID.shape), 1.0)
    scan = (mean_image + np.where(lesion, 0.2 * detail / detail.std(), 0)).astype(np.float32)
    before, after = (local_texture(image, mask, SIGMA) for image in (mean_image, scan))
    assert (after - before)[ball(LEFT, 3)].min() > 0.5
    assert abs(np.median(after[mask])) < 1e-6


def test_texture_does_not_depend_on_the_contrast_of_the_scan(mean_image: FloatArray, mask: MaskArray) -> None:
    one, twice = (local_texture(image, mask, SIGMA) for image in (mean_image, 2 * mean_image))
    np.testing.assert_allclose(one, twice, atol=1e-3)


def test_growth_on_one_side_is_growth_and_asymmetry_there(mean_image: FloatArray, mask: MaskArray) -> None:
    offset = np.indices(GRID.shape) - LEFT[:, None, None, None]
    fading = np.clip(2 - np.linalg.norm(offset, axis=0) / 5, 0, 1)
    scan = np.where(mask, ndimage.map_coordinates(mean_image, np.indices(GRID.shape) - 0.35 * fading * offset), 0)
    maps = structure_maps(scan.astype(np.float32), mask, mean_image, GRID, ("growth", "growth_asymmetry"))

    assert list(maps) == ["growth", "growth_asymmetry"]
    assert maps["growth"][ball(LEFT, 3)].mean() > 0.2
    assert maps["growth_asymmetry"][ball(LEFT, 3)].mean() > 0.2
    assert maps["growth_asymmetry"][ball(RIGHT, 3)].mean() < -0.2


def test_only_the_named_maps_are_computed(mean_image: FloatArray, mask: MaskArray) -> None:
    maps = structure_maps(mean_image, mask, mean_image, GRID, STRUCTURE_MAPS)
    assert tuple(maps) == STRUCTURE_MAPS
    for name, values in maps.items():
        assert values.dtype == np.float32, name
        assert not values[~mask].any(), name
    assert list(structure_maps(mean_image, mask, mean_image, GRID, ("structure",))) == ["structure"]


def test_only_what_exceeds_the_healthy_mean_is_evidence() -> None:
    mask = np.array([True, True, False])
    z = {"structure": np.array([2.0, -3.0, 9.0], np.float32), "growth": np.array([-1.0, 4.0, 9.0], np.float32)}
    found = structure_evidence(z, {"structure": 0.5, "growth": 2.0}, mask)
    np.testing.assert_allclose(found, [1.0, 8.0, 0.0])
