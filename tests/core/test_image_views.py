"""Cutting volumes into images, and assembling them."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.image_views import ImageView

SHAPE = (10, 12, 8)
VIEWS = [
    ImageView(kind="slice", axis=2),
    ImageView(kind="slice", axis=0, neighbours=2),
    ImageView(kind="slice", axis=1, neighbours=1),
    ImageView(kind="patch", size=(6, 6, 6), overlap=0.5),
    ImageView(kind="patch", size=(20, 6, 8), overlap=0.25),
    ImageView(kind="volume"),
]


@pytest.fixture
def voxels(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_assembling_the_images_of_a_volume_gives_the_volume(view: ImageView, voxels: np.ndarray) -> None:
    locations = view.locations(np.ones(SHAPE, dtype=bool))
    pieces = ((location, view.target_slice(voxels, location)) for location in locations)

    np.testing.assert_allclose(view.assemble(SHAPE, pieces), voxels, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_images_have_the_channels_and_shape_of_the_view(view: ImageView, voxels: np.ndarray) -> None:
    for location in view.locations(np.ones(SHAPE, dtype=bool)):
        assert view.cut(voxels, location).shape == (view.channels, *view.image_shape(SHAPE))
        assert view.target_slice(voxels, location).shape == (1, *view.image_shape(SHAPE))


def test_the_middle_channel_of_neighbouring_slices_is_the_target(voxels: np.ndarray) -> None:
    view = ImageView(kind="slice", axis=2, neighbours=2)
    location = view.locations(np.ones(SHAPE, dtype=bool))[3]

    np.testing.assert_array_equal(view.cut(voxels, location)[2], view.target_slice(voxels, location)[0])
    np.testing.assert_array_equal(view.cut(voxels, location)[0], voxels[:, :, 1])


def test_neighbours_beyond_the_edge_repeat_the_edge_slice(voxels: np.ndarray) -> None:
    view = ImageView(kind="slice", axis=2, neighbours=1)
    first = view.locations(np.ones(SHAPE, dtype=bool))[0]

    np.testing.assert_array_equal(view.cut(voxels, first)[0], view.cut(voxels, first)[1])


def test_slices_without_foreground_are_left_out() -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:6, 4:6, 3:5] = True

    assert [location[2].start for location in ImageView(kind="slice", axis=2).locations(mask)] == [3, 4]
