from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from anomaly.evaluation.generation import variety

Floats = npt.NDArray[np.float64]


def normal(n: int, seed: int = 0, size: int = 8) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, size))


def test_more_of_the_same_kind_covers_what_is_real_and_is_as_dense() -> None:
    found = variety(normal(1000, 1, size=2), normal(1000, 2, size=2), neighbours=5)
    assert abs(found.coverage - (1 - 2**-5)) < 0.02
    assert abs(found.density - 1) < 0.05
    assert found.distinct > 0.8


def test_one_image_again_and_again_covers_little_and_nothing_of_it_is_distinct() -> None:
    found = variety(normal(300), np.tile(normal(1, 1), (300, 1)))
    assert found.coverage < 0.05
    assert found.distinct == 0


def test_half_of_the_kinds_cover_half_of_what_is_real() -> None:
    kinds = np.repeat([-100.0, 100.0], 200)[:, None]
    found = variety(normal(400) + kinds, normal(400, 1) + 100)
    assert abs(found.coverage - 0.5) < 0.05
    assert abs(found.density - 1) < 0.3


def test_images_far_from_all_that_is_real_cover_nothing_though_they_differ() -> None:
    found = variety(normal(100), normal(100, 1) + 100)
    assert found.coverage == found.density == 0
    assert found.distinct == 1


def test_images_are_compared_voxel_by_voxel_whatever_their_shape() -> None:
    real, generated = normal(40), normal(30, 1)
    assert variety(real, generated) == variety(real.reshape(40, 1, 2, 4), generated.reshape(30, 1, 2, 4))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_unit_of_intensity_does_not_matter(scale: float) -> None:
    assert variety(scale * normal(50), scale * normal(50, 1)) == variety(normal(50), normal(50, 1))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="found 5 real"):
        variety(normal(5), normal(5, 1))
