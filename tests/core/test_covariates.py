from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.covariates import COVARIATES, UNKNOWN, covariates


@pytest.mark.parametrize(("written", "number"), [("F", 0), ("female", 0), (" m ", 1), ("Male", 1)])
def test_sexes_as_participants_tables_write_them(written: str, number: float) -> None:
    assert covariates(63.5, written).tolist() == [63.5, number]


@pytest.mark.parametrize("written", ["", "n/a", "o"])
def test_what_is_not_known_is_not_a_number(written: str) -> None:
    assert np.isnan(covariates(None, written)).all()


def test_there_is_one_number_for_every_name() -> None:
    assert UNKNOWN.shape == (len(COVARIATES),)
    assert UNKNOWN.dtype == np.float32
