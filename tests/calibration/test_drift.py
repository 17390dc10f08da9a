from __future__ import annotations

import numpy as np
import pytest

from anomaly.calibration.drift import check_drift
from anomaly.calibration.operating_point import operating_point

REFERENCE = np.random.default_rng(0).gamma(5.0, size=100)
POINT = operating_point(REFERENCE, 0.05)


@pytest.mark.slow
def test_scans_from_the_same_population_show_no_shift() -> None:
    alarms = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        healthy = generator.gamma(5.0, size=100)
        point = operating_point(healthy, 0.05)
        found = check_drift(generator.gamma(5.0, size=60), healthy, 0.05, point.threshold, level=0.05)
        alarms += found.level == "shift"
    assert alarms / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_changed_scanner_is_detected_and_reported(rng: np.random.Generator) -> None:
    found = check_drift(rng.gamma(5.0, size=60) * 0.7, REFERENCE, 0.05, POINT.threshold)
    assert found.level == "shift"
    assert "score lower" in found.message
    assert "may differ from its target" in found.message


def test_abnormal_patients_among_the_new_scans_are_not_called_a_shift(rng: np.random.Generator) -> None:
    new = np.concatenate([rng.gamma(5.0, size=60), np.full(30, 1e3)])
    found = check_drift(new, REFERENCE, 0.05, POINT.threshold)
    assert found.level == "none"
    assert found.n_flagged >= 30
    assert "either many are abnormal or the scanner has changed" in found.message


def test_too_few_scans_give_an_unknown_result() -> None:
    found = check_drift([1.0, 2.0], REFERENCE, 0.05, POINT.threshold)
    assert found.level == "unknown"
    assert np.isnan(found.shift_p)


def test_no_scans_give_an_unknown_result() -> None:
    found = check_drift([], REFERENCE, 0.05, POINT.threshold)
    assert (found.level, found.n_scored) == ("unknown", 0)
