"""Whether the images of a series are all there, by counts, numbers and distances in their headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset

from anomaly.core.errors import ScanRefusedError
from anomaly.io.dicom_completeness import (
    count_positions,
    have_repeated_positions,
    lies_in_stack,
    missing_images,
    signs_of_missing_images,
)
from anomaly.io.dicom_header import Header, read_header
from anomaly.io.stored_file import StoredFile
from tests.io.dicom_factory import encode, make_series, make_slice, uid

DERIVED = ["DERIVED", "SECONDARY", "M"]


def headers_of(series: list[FileDataset]) -> list[Header]:
    return [read_header(StoredFile(Path(f"{n:04d}")), encode(ds)) for n, ds in enumerate(series)]


def refusal(series: list[FileDataset]) -> ScanRefusedError | None:
    headers = headers_of(series)
    return missing_images(headers, headers)


def signs(series: list[FileDataset]) -> str:
    headers = headers_of(series)
    return signs_of_missing_images(headers, headers)


@pytest.mark.parametrize("keyword", ["NumberOfSlices", "ImagesInAcquisition", "NumberOfSeriesRelatedInstances"])
@pytest.mark.parametrize("kept", [slice(0, 18), slice(2, 20)], ids=["end", "start"])
def test_missing_end_slices_are_found_by_any_count(keyword: str, kept: slice) -> None:
    series = make_series(20, shape=(4, 4), **{keyword: 20})
    assert refusal(series) is None
    assert signs(series) == ""
    error = refusal(series[kept])
    assert error is not None
    assert error.code == "missing_slices"
    assert "18 " in error.found
    assert error.found.endswith("20: 2 missing" if keyword == "NumberOfSlices" else ": 2 missing")


@pytest.mark.parametrize("count", [20, 40, 60, 15, 7], ids=["all", "2 echoes", "3 echoes", "fewer", "far fewer"])
def test_an_acquisition_of_several_echoes_or_volumes_is_not_taken_for_missing_slices(count: int) -> None:
    series = make_series(20, shape=(4, 4), ImagesInAcquisition=count)
    assert refusal(series) is None
    assert signs(series) == ""


def test_a_time_series_with_fewer_images_than_time_points_is_incomplete() -> None:
    first, second = (make_series(10, shape=(4, 4), seed=t, NumberOfTemporalPositions=2) for t in range(2))
    assert refusal([*first, *second]) is None
    assert refusal(first) is None, "one time point is a whole volume"
    error = refusal([*first, *second[:8]])
    assert error is not None
    assert error.found == "18 images for 2 time points of 10 slices: 2 missing"


def test_a_count_far_from_the_number_of_images_marks_the_scan() -> None:
    series = make_series(20, shape=(4, 4), ImagesInAcquisition=173)
    assert refusal(series) is None
    assert signs(series) == "20 images where the header counts 173 in the acquisition"


def test_a_count_that_a_derived_image_copied_marks_the_scan() -> None:
    series = make_series(18, shape=(4, 4), NumberOfSlices=20, ImageType=DERIVED)
    assert refusal(series) is None
    assert signs(series) == "18 slices where the header counts 20: 2 missing"


def test_one_wrong_count_among_many_is_no_sign() -> None:
    series = make_series(20, shape=(4, 4), NumberOfSlices=20)
    series[3].NumberOfSlices = 99
    assert refusal(series) is None


def test_slices_of_the_same_series_in_other_scans_are_counted() -> None:
    both = headers_of(make_series(20, shape=(4, 4), ImagesInAcquisition=20))
    assert missing_images(both[:10], both) is None
    assert missing_images(both[:15], both[:15]) is not None


def test_every_second_slice_is_missing_if_the_header_says_half_the_distance() -> None:
    series = make_series(20, shape=(4, 4), SpacingBetweenSlices=3.0)
    assert refusal(series) is None
    error = refusal(series[::2])
    assert error is not None
    assert error.found == "slices 6.00 mm apart where the header says 3.00 mm: 9 missing"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (lambda k: k + 1, ""),
        (lambda k: k + 267, ""),  # a part of a long series, exported as a series
        (lambda k: 2 * k + 1, ""),  # one of two echoes, numbered in turn
        (lambda k: 0, ""),
        (lambda k: k + 3, "instance numbers from 3 instead of 1"),
        (lambda k: k + 1 + (k >= 8), "1 of the instance numbers from 1 to 21 missing"),
    ],
    ids=["complete", "late start", "every second", "no numbers", "first missing", "gap"],
)
def test_instance_numbers_are_a_sign_only(numbers: Callable[[int], int], expected: str) -> None:
    series = make_series(20, shape=(4, 4))
    for k, ds in enumerate(series):
        ds.InstanceNumber = numbers(k)
    assert refusal(series) is None
    assert signs(series) == expected


def test_positions_that_differ_by_rounding_are_the_same() -> None:
    series = make_series(4, shape=(4, 4)) + make_series(4, shape=(4, 4), start=(-10.0, -20.0, 5.000002))
    headers = headers_of(series)
    assert have_repeated_positions(headers)
    assert count_positions(headers) == 4
    assert not have_repeated_positions(headers[:4])


@pytest.mark.parametrize(
    ("z", "expected"), [(-3, True), (60, True), (27, False), (27.9, False), (300, False)],
    ids=["before", "behind", "occupied", "between", "far"],
)  # fmt: skip
def test_an_image_continues_a_stack_if_it_lies_at_its_next_position(z: float, expected: bool) -> None:
    stack = headers_of(make_series(20, shape=(4, 4), start=(0, 0, 0)))
    other = make_slice(99, (0, 0, z), make_series(1, shape=(5, 5))[0].pixel_array, series=uid("other"))
    assert lies_in_stack(headers_of([other])[0], stack) is expected
