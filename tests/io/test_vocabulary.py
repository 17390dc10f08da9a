"""The words that tables and headers use."""

from __future__ import annotations

import pytest

from anomaly.io.vocabulary import (
    is_missing,
    parse_age,
    parse_dicom_age,
    parse_group,
    parse_sex,
    parse_split,
    unknown_values,
    without_missing,
)


@pytest.mark.parametrize(
    "text", ["", " ", "n/a", "N/A", "NA", "nan", "NaN", "null", "None", "-", "--", "?", "unknown", '"n/a"', "#N/A"]
)
def test_words_for_missing_values(text: str) -> None:
    assert is_missing(text)
    assert without_missing(text) == ""
    assert parse_group(text) == parse_split(text) == parse_sex(text) == ""
    assert parse_age(text) is None


@pytest.mark.parametrize("text", ["0", "no", "naomi", "x", "none of them"])
def test_other_words_are_values(text: str) -> None:
    assert not is_missing(text)
    assert without_missing(f" {text} ") == text


@pytest.mark.parametrize("text", ["healthy", "Control", "HC", "cn", "normal", "Healthy-Control"])
def test_words_for_healthy(text: str) -> None:
    assert parse_group(text) == "healthy"


@pytest.mark.parametrize("text", ["patient", "AD", "MS", "1"])
def test_another_group_stays_as_it_is(text: str) -> None:
    assert parse_group(text) == text


@pytest.mark.parametrize(
    ("text", "split"),
    [("Training", "train"), ("val", "validation"), ("dev", "validation"), ("Calib", "calibration"),
     ("TEST", "test"), ("fold3", "fold3")],
)  # fmt: skip
def test_words_for_splits(text: str, split: str) -> None:
    assert parse_split(text) == split


@pytest.mark.parametrize(
    ("text", "sex"), [("M", "M"), ("male", "M"), ("Female", "F"), ("w", "F"), ("O", "O"), ("1", ""), ("2", "")]
)
def test_words_for_sex(text: str, sex: str) -> None:
    assert parse_sex(text) == sex


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("34.5", 34.5), ("63,5", 63.5), ("045Y", 45.0), ("018M", 1.5), ("10 weeks", 0.19), ("30 days", 0.08),
        ("72 years", 72.0), ("72y", 72.0), ("72 yo", 72.0), ("89+", 89.0), (">89", 89.0), ("60-65", 62.5),
        ("60–64", 62.0), ("0", 0.0),
    ],
)  # fmt: skip
def test_ages_in_years(text: str, years: float) -> None:
    assert parse_age(text) == years


@pytest.mark.parametrize(
    "text", ["NaN", "inf", "-3", "999", "121", "1e2", "20-80", "65-60", "young", "045X", "12:30", "1_000", "٤٥"]
)
def test_what_is_no_age_of_a_human_is_unknown(text: str) -> None:
    assert parse_age(text) is None


def test_a_dicom_age_needs_its_unit() -> None:
    assert [parse_dicom_age(text) for text in ("045Y", "018M", "42", "", "999Y")] == [45.0, 1.5, None, None, None]


def test_values_that_are_not_understood_are_listed_with_what_is_known() -> None:
    assert (
        unknown_values("sex", ["M", "n/a", "1", "2", "1"]) == "sex '1', '2': taken as unknown; expected M, F or O"
    )
    assert "fold3" in unknown_values("split", ["train", "fold3"])
    assert "calibration" in unknown_values("split", ["fold3"])
    assert "words for healthy: healthy, control" in unknown_values("group", ["AD", "healthy"])
    assert "'-3'" in unknown_values("age", ["-3", "nan", "45"])
    assert unknown_values("group", ["HC", "patient", ""]) == ""
