from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import InputError
from pipelines.validation.datasets.avatars import image_bank as module
from pipelines.validation.datasets.avatars.distribution import VALUES
from pipelines.validation.datasets.avatars.image_bank import (
    ImageBank,
    hide_invisible,
    load_image_bank,
    visible_codes,
)
from pipelines.validation.datasets.avatars.mosaic import mosaic
from pipelines.validation.labelled_dataset import NOT_VISIBLE
from tests.pipelines.validation.small_avatars import painted


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Draw stripes instead of avatars, and count how many."""
    counts: list[int] = []

    def paint(combinations: list[object], size: int, progress: object) -> object:
        counts.append(len(combinations))
        return painted(visible_codes())

    monkeypatch.setattr(module, "render_many", paint)
    return counts


def test_there_is_one_image_for_each_combination_that_can_be_distinguished() -> None:
    rows = visible_codes()
    assert rows.shape == (3552, 5)
    assert len(np.unique(rows, axis=0)) == 3552
    assert ((rows[:, 1] == NOT_VISIBLE) == (rows[:, 0] == VALUES[0].index("NoHair"))).all()


def test_each_combination_has_its_own_image() -> None:
    image_bank = ImageBank(painted(visible_codes()))
    rows = visible_codes()[::37]
    assert (image_bank.mosaics(rows) == mosaic(painted(rows))).all()


def test_the_hair_colour_of_the_bald_makes_no_difference() -> None:
    image_bank = ImageBank(painted(visible_codes()))
    bald = np.array([[0, colour, 1, 2, 3] for colour in (-1, 0, 5)])
    assert (hide_invisible(bald)[:, 1] == NOT_VISIBLE).all()
    images = image_bank.mosaics(bald)
    assert (images == images[0]).all()


def test_a_combination_with_a_value_missing_has_no_image() -> None:
    with pytest.raises(ValueError, match="missing values"):
        ImageBank(painted(visible_codes())).mosaics([[3, -1, 1, 2, 3]])


def test_images_are_drawn_once(sample: list[int], tmp_path: Path) -> None:
    first, again = (load_image_bank(tmp_path, 32) for _ in range(2))
    assert sample == [3552]
    assert (first.images == again.images).all()
    load_image_bank(tmp_path, 64)
    assert sample == [3552, 3552]


def test_a_damaged_image_bank_is_refused(sample: list[int], tmp_path: Path) -> None:
    load_image_bank(tmp_path, 32)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="delete it to draw anew"):
        load_image_bank(tmp_path, 32)
