"""Covariates of a subject."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.config import Settings
from anomaly.core.covariates import (
    AGE_AND_SEX,
    UNKNOWN_COVARIATES,
    Covariate,
    Covariates,
    covariates,
    format_covariates,
    reported_age,
    years_text,
)
from anomaly.core.errors import ConfigError


@pytest.mark.parametrize(("written", "number"), [("F", 0), ("female", 0), (" m ", 1), ("Male", 1)])
def test_sexes_are_read_in_their_usual_spellings(written: str, number: float) -> None:
    assert covariates(63.5, written).tolist() == [63.5, number]


@pytest.mark.parametrize("written", ["", "n/a", "o"])
def test_unknown_covariates_are_nan(written: str) -> None:
    assert np.isnan(covariates(None, written)).all()


@pytest.mark.parametrize(
    ("age", "reported"), [(63.97, 63), (89.9, 89), (90, 90), (97.2, 90), (0.5, 0), (None, None), (np.nan, None)]
)
def test_ages_are_reported_in_whole_years_and_of_the_very_old_only_that_they_are(
    age: float | None, reported: float | None
) -> None:
    assert reported_age(age) == reported


@pytest.mark.parametrize(("age", "text"), [(89.0, "89 years"), (90.0, "90 years or older")])
def test_an_age_is_named_in_years(age: float, text: str) -> None:
    assert years_text(age) == text


def test_there_is_one_number_per_covariate() -> None:
    assert UNKNOWN_COVARIATES.shape == (len(AGE_AND_SEX),)
    assert UNKNOWN_COVARIATES.dtype == np.float32


class ConditionedSettings(Settings):
    """Settings of a conditioned model."""

    covariates: Covariates = AGE_AND_SEX


def test_covariates_are_listed_with_their_possible_values() -> None:
    digit = ConditionedSettings.parse(
        {"covariates": [{"name": "digit", "values": 10}, {"name": "slant"}]}, "model"
    ).covariates
    assert digit == (Covariate(name="digit", values=10), Covariate(name="slant"))
    assert format_covariates(digit) == "digit (one of 0 to 9), slant (a number)"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least 1 item"),
        ([{"name": "digit", "values": 1}], "is constant"),
        ([{"name": "digit", "values": -2}], "greater than or equal to 0"),
        ([{"name": "digit"}, {"name": "digit", "values": 10}], "a unique name; found digit"),
        ([{"name": "digit", "classes": 10}], "unknown key"),
    ],
)
def test_invalid_covariates_are_refused(values: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConditionedSettings.parse({"covariates": values}, "model")
