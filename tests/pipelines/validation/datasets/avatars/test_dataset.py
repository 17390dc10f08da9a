from __future__ import annotations

import numpy as np

from pipelines.validation.datasets.avatars.dataset import Avatars, in_colour
from pipelines.validation.datasets.avatars.image_bank import ImageBank, visible_codes
from pipelines.validation.datasets.avatars.settings import AvatarSettings
from tests.pipelines.validation.small_avatars import SETTINGS, painted


def avatars(settings: AvatarSettings = SETTINGS) -> Avatars:
    return Avatars(settings, ImageBank(painted(visible_codes())))


def test_a_part_is_the_same_again_and_unlike_another_part_or_seed() -> None:
    codes = avatars().codes("train", 200)
    assert (avatars().codes("train", 200) == codes).all()
    assert (avatars().codes("test", 200) != codes).any()
    assert (avatars(SETTINGS.model_copy(update={"seed": 1})).codes("train", 200) != codes).any()


def test_the_labels_of_images_are_the_codes_of_the_part() -> None:
    found = avatars().images("test", 30)
    assert (found.labels == avatars().codes("test", 30)).all()
    assert found.pixels.shape == (30, 20, 20)


def test_without_smoothing_only_observed_values_are_drawn() -> None:
    source = avatars()
    observed = [set(values) for values in zip(*source.observed, strict=True)]
    assert len(source.observed) == 50
    names = [set(np.unique(column[column >= 0])) for column in source.codes("train", 2000).T]
    assert [len(some) for some in names] <= [len(some) for some in observed]
    smoothed = [set(np.unique(column[column >= 0])) for column in source.codes("train", 2000, alpha=1.0).T]
    assert sum(map(len, smoothed)) > sum(map(len, names))


def test_colours_are_those_of_the_bank() -> None:
    rows = avatars().codes("test", 4)
    shown = in_colour(avatars().images("test", 4).pixels)
    assert np.abs(shown - painted(rows) / 255).max() < 1e-6
