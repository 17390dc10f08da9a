"""Telling zeros that were never written from a background of zeros."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.io.dicom_zero_fill import count_blank_ends, zero_filled_slices

SHAPE = (20, 30)


def full(n_slices: int = 6) -> list[np.ndarray]:
    return [np.zeros(SHAPE, dtype=bool) for _ in range(n_slices)]


def ball(n_slices: int = 12) -> list[np.ndarray]:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    heights = np.linspace(-1, 1, n_slices)
    return [np.hypot((rows - 10) / 9, (columns - 15) / 14) > np.sqrt(1 - h**2) for h in heights]


@pytest.mark.parametrize("index", [0, 3, 5])
@pytest.mark.parametrize(("start", "end"), [(100, 600), (570, 600), (0, 300), (200, 260)])
def test_zeros_in_an_image_without_background_are_damage(index: int, start: int, end: int) -> None:
    zeros = full()
    zeros[index].ravel()[start:end] = True
    assert zero_filled_slices(zeros) == [index]


def test_a_few_zeros_are_no_damage() -> None:
    zeros = full()
    zeros[3].ravel()[:29] = True
    assert zero_filled_slices(zeros) == []


def test_a_background_of_zeros_is_no_damage() -> None:
    assert zero_filled_slices(ball()) == []
    assert count_blank_ends(ball()) == 0


@pytest.mark.parametrize("start", [0, 200, 400])
def test_the_end_of_a_slice_with_background_is_damage_inside_the_stack(start: int) -> None:
    zeros = ball()
    zeros[6].ravel()[start:] = True
    assert zero_filled_slices(zeros) == [6]


def test_zeros_from_one_slice_to_the_end_of_the_stack_are_damage() -> None:
    zeros = full()
    zeros[3].ravel()[400:] = True
    zeros[4][:] = zeros[5][:] = True
    assert zero_filled_slices(zeros) == [3]
    assert count_blank_ends(zeros) == 2


def test_blank_slices_at_both_ends_are_counted_and_are_no_damage() -> None:
    zeros = full()
    zeros[0][:] = zeros[4][:] = zeros[5][:] = True
    assert zero_filled_slices(zeros) == []
    assert count_blank_ends(zeros) == 3
