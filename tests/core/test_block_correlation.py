"""The median correlation over blocks."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.block_correlation import median_block_correlation
from anomaly.core.volume import FloatArray

SPACING = (4.0, 4.0, 4.0)  # a block of 16 mm has 4³ voxels
EVERYWHERE = np.ones((16, 16, 16), dtype=bool)


@pytest.fixture
def reference(rng: np.random.Generator) -> FloatArray:
    return rng.uniform(0.5, 1.0, EVERYWHERE.shape).astype(np.float32)


def test_it_does_not_depend_on_scale_and_offset_of_the_image(reference: FloatArray) -> None:
    assert median_block_correlation(200 * reference + 30, reference, EVERYWHERE, SPACING) == pytest.approx(1)
    assert median_block_correlation(-reference, reference, EVERYWHERE, SPACING) == pytest.approx(-1)


def test_another_scale_in_every_block_does_not_change_it(reference: FloatArray) -> None:
    scale = np.kron(np.arange(1, 65).reshape(4, 4, 4), np.ones((4, 4, 4)))
    image = (scale * reference).astype(np.float32)
    assert median_block_correlation(image, reference, EVERYWHERE, SPACING) == pytest.approx(1)
    assert np.corrcoef(image.ravel(), reference.ravel())[0, 1] < 0.5


@pytest.mark.parametrize(("changed_share", "expected"), [(0.4, 1.0), (0.6, -1.0)])
def test_it_is_that_of_more_than_half_of_the_blocks(
    reference: FloatArray, changed_share: float, expected: float
) -> None:
    image = reference.copy().reshape(4, 4, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3, 5).reshape(64, -1)
    image[: round(changed_share * 64)] *= -1
    image = image.reshape(4, 4, 4, 4, 4, 4).transpose(0, 3, 1, 4, 2, 5).reshape(16, 16, 16)
    assert median_block_correlation(image, reference, EVERYWHERE, SPACING) == pytest.approx(expected)


def test_the_outline_says_nothing(reference: FloatArray, rng: np.random.Generator) -> None:
    inside = np.zeros_like(EVERYWHERE)
    inside[4:12] = True
    noise = rng.uniform(0.5, 1.0, inside.shape).astype(np.float32)
    image, masked = np.where(inside, noise, 0), np.where(inside, reference, 0)
    assert np.corrcoef(image.ravel(), masked.ravel())[0, 1] > 0.8
    assert abs(median_block_correlation(image, masked, inside, SPACING)) < 0.15


def test_without_a_complete_block_all_voxels_are_one_block(reference: FloatArray) -> None:
    inside = np.zeros_like(EVERYWHERE)
    inside[::2] = True
    assert median_block_correlation(reference, reference, inside, SPACING) == pytest.approx(1)


def test_a_block_without_contrast_in_the_reference_does_not_count(reference: FloatArray) -> None:
    flat = reference.copy()
    flat[:12] = 0.7
    image = reference.copy()
    image[:12] *= -1
    assert median_block_correlation(image, flat, EVERYWHERE, SPACING) == pytest.approx(1)


def test_a_constant_image_and_an_empty_mask_correlate_with_nothing(reference: FloatArray) -> None:
    assert median_block_correlation(np.full_like(reference, 0.1), reference, EVERYWHERE, SPACING) == 0
    assert median_block_correlation(reference, reference, ~EVERYWHERE, SPACING) == 0
    assert median_block_correlation(reference, np.full_like(reference, 0.1), EVERYWHERE, SPACING) == 0


@pytest.mark.parametrize("shape", [(28, 28, 1), (2, 3, 2), (5, 7, 9)])
def test_small_and_flat_images_are_compared(shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    image = rng.random(shape).astype(np.float32)
    assert median_block_correlation(image, image, np.ones(shape, dtype=bool), (2.0, 2.0, 2.0)) == pytest.approx(1)
