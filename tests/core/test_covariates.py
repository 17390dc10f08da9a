from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.config import Settings
from anomaly.core.covariates import AGE_AND_SEX, UNKNOWN_COVARIATES, Covariate, Covariates, covariates, listed
from anomaly.core.errors import ConfigError


@pytest.mark.parametrize(("written", "number"), [("F", 0), ("female", 0), (" m ", 1), ("Male", 1)])
def test_sexes_as_participants_tables_write_them(written: str, number: float) -> None:
    assert covariates(63.5, written).tolist() == [63.5, number]


@pytest.mark.parametrize("written", ["", "n/a", "o"])
def test_what_is_not_known_is_not_a_number(written: str) -> None:
    assert np.isnan(covariates(None, written)).all()


def test_there_is_one_number_for_every_name() -> None:
    assert UNKNOWN_COVARIATES.shape == (len(AGE_AND_SEX),)
    assert UNKNOWN_COVARIATES.dtype == np.float32


class Told(Settings):
    """Settings of a model that is told something."""

    covariates: Covariates = AGE_AND_SEX


def test_covariates_say_what_each_may_be() -> None:
    digit = Told.parse({"covariates": [{"name": "digit", "values": 10}, {"name": "slant"}]}, "model").covariates
    assert digit == (Covariate(name="digit", values=10), Covariate(name="slant"))
    assert listed(digit) == "digit (one of 0 to 9), slant (a number)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least 1 item"),
        ([{"name": "digit", "values": 1}], "says nothing"),
        ([{"name": "digit", "values": -2}], "greater than or equal to 0"),
        ([{"name": "digit"}, {"name": "digit", "values": 10}], "a name of its own; found digit"),
        ([{"name": "digit", "classes": 10}], "unknown key"),
    ],
)
def test_covariates_that_make_no_sense_are_refused(given: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Told.parse({"covariates": given}, "model")
