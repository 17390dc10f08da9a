from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import linalg

from anomaly.evaluation.generation import density_coverage, frechet_distance, memorised_fraction, precision_recall

Floats = npt.NDArray[np.float64]


def normal(n: int, seed: int = 0, size: int = 8) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, size))


def test_draws_from_the_real_distribution_have_the_expected_coverage_and_density() -> None:
    found = density_coverage(normal(1000, 1, size=2), normal(1000, 2, size=2), neighbours=5)
    assert abs(found.coverage - (1 - 2**-5)) < 0.02
    assert abs(found.density - 1) < 0.05
    assert found.distinct > 0.8


def test_a_repeated_image_has_low_coverage_and_no_distinct_images() -> None:
    found = density_coverage(normal(300), np.tile(normal(1, 1), (300, 1)))
    assert found.coverage < 0.05
    assert found.distinct == 0


def test_half_of_the_modes_cover_half_of_the_real_images() -> None:
    modes = np.repeat([-100.0, 100.0], 200)[:, None]
    found = density_coverage(normal(400) + modes, normal(400, 1) + 100)
    assert abs(found.coverage - 0.5) < 0.05
    assert abs(found.density - 1) < 0.3


def test_distinct_images_far_from_all_real_ones_have_no_coverage() -> None:
    found = density_coverage(normal(100), normal(100, 1) + 100)
    assert found.coverage == found.density == 0
    assert found.distinct == 1


def test_images_are_compared_voxel_by_voxel_whatever_their_shape() -> None:
    real, generated = normal(40), normal(30, 1)
    assert density_coverage(real, generated) == density_coverage(
        real.reshape(40, 1, 2, 4), generated.reshape(30, 1, 2, 4)
    )


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_unit_of_intensity_does_not_matter(scale: float) -> None:
    assert density_coverage(scale * normal(50), scale * normal(50, 1)) == density_coverage(
        normal(50), normal(50, 1)
    )


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="found 5 real"):
        density_coverage(normal(5), normal(5, 1))


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    first, second = normal(200_000, 1, size=2), 2 * normal(200_000, 2, size=2) + [3, 0]
    assert abs(frechet_distance(first, second) - (9 + 2 * (1 + 4 - 2 * 2))) < 0.1  # SD 1 and 2, 3 apart
    assert frechet_distance(first, first) < 1e-6


def test_the_frechet_distance_of_covariances_that_do_not_commute_is_that_of_the_matrix_root() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)), rng.normal(size=(60, 3))
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = ((first.mean(0) - second.mean(0)) ** 2).sum()
    expected = apart + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_precision_is_one_half_if_half_of_the_generated_images_are_far_from_real_ones() -> None:
    found = precision_recall(normal(300), np.concatenate([normal(300, 1), normal(300, 2) + 100]))
    assert abs(found.precision - 0.5) < 0.05
    assert found.recall > 0.9


def test_half_of_the_modes_have_high_precision_and_half_the_recall() -> None:
    modes = np.repeat([-100.0, 100.0], 200)[:, None]
    found = precision_recall(normal(400) + modes, normal(400, 1) + 100)
    assert found.precision > 0.9
    assert abs(found.recall - 0.5) < 0.05


def test_copies_are_distinguished_from_new_images_of_the_same_distribution() -> None:
    known, new = normal(1500, 1, size=20), normal(1500, 2, size=20)
    assert memorised_fraction(known, new) < 0.01
    nearly = known[:500] + 0.01 * normal(500, 3, size=20)
    assert memorised_fraction(known, np.concatenate([new, nearly])) == pytest.approx(0.25, abs=0.01)
