from __future__ import annotations

import numpy as np
import pytest

from pipelines.validation.datasets.avatars.mosaic import mosaic, to_rgb


def test_a_pixel_becomes_a_block_of_red_green_blue_and_their_mean() -> None:
    one = np.array([[[[255, 0, 51]]]], dtype=np.uint8)
    assert mosaic(one).tolist() == pytest.approx(np.array([[[1, 0], [0.2, 0.4]]]))


def test_blocks_lie_where_their_pixels_lay(rng: np.random.Generator) -> None:
    images = rng.integers(256, size=(2, 3, 5, 3), dtype=np.uint8)
    found = mosaic(images)
    assert found.shape == (2, 6, 10)
    assert found.dtype == np.float32
    for channel, (down, across) in enumerate([(0, 0), (0, 1), (1, 0)]):
        assert found[:, down::2, across::2] == pytest.approx(images[..., channel] / 255)
    assert found[:, 1::2, 1::2] == pytest.approx(images.mean(axis=-1) / 255)


def test_every_colour_comes_back_as_it_was(rng: np.random.Generator) -> None:
    images = rng.integers(256, size=(4, 8, 6, 3), dtype=np.uint8)
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    assert (to_rgb(mosaic(images)) == images).all()
    assert (to_rgb(mosaic(ramp)) == ramp).all()


def test_what_lies_outside_the_range_is_cut_off_and_the_mean_does_not_matter() -> None:
    assert to_rgb([[[1.5, -0.3], [0.5, 9.0]]]).tolist() == [[[[255, 0, 128]]]]


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 4, 4, 1), (4, 4, 3)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        mosaic(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 4, 5), (4, 4)])
def test_what_is_no_mosaic_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        to_rgb(np.zeros(shape))
