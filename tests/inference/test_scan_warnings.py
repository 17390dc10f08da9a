from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomaly.calibration.record import CalibrationRecord
from anomaly.core.results import HealthyGroup
from anomaly.inference.scan_warnings import SHIPPED_CALIBRATION, SIMILARITY_MARGIN, model_notices, model_warnings
from anomaly.scoring.acquisition_shift import AcquisitionShift
from anomaly.scoring.scorer import ScoredVolume
from anomaly.scoring.settings import EvidenceSettings

SETTINGS = EvidenceSettings(min_block_correlation=0.5, acquisition_alpha=1e-4)


def scored(similarity: float, shift: AcquisitionShift | None = None) -> ScoredVolume:
    volume = np.zeros((2, 2, 2), dtype=np.float32)
    return ScoredVolume(volume, volume, volume, volume > 0, {}, similarity, shift)


def test_a_scan_like_the_training_scans_has_no_warning() -> None:
    usual = AcquisitionShift(0.4, "coarse texture", 0.8)
    assert list(model_warnings(scored(0.9, usual), SETTINGS)) == []


@pytest.mark.parametrize(("above_limit", "n_warnings"), [(0.9, 1), (1.1, 0)])
def test_a_scan_close_to_the_refusal_limit_has_a_warning(above_limit: float, n_warnings: int) -> None:
    found = list(model_warnings(scored(0.5 + above_limit * SIMILARITY_MARGIN), SETTINGS))
    assert len(found) == n_warnings
    assert all("limit of 0.50" in warning for warning in found)


def test_a_scan_of_another_scanner_has_a_warning_with_the_feature_that_differs() -> None:
    (warning,) = model_warnings(scored(0.9, AcquisitionShift(1e-6, "coarse texture", 7.2)), SETTINGS)
    assert "coarse texture, +7.2 SD" in warning
    assert "target false-positive rate does not hold" in warning


@pytest.mark.parametrize(
    ("shipped", "reason", "expected"),
    [
        ({"reference": "the shipped scans"}, "the shipped scans", (SHIPPED_CALIBRATION,)),
        ({"reference": "the shipped scans"}, "our own scanner", ()),
        (None, "the shipped scans", ()),
    ],
)
def test_only_a_calibration_that_was_shipped_says_for_which_scanner_it_is(
    shipped: dict[str, str] | None, reason: str, expected: tuple[str, ...]
) -> None:
    metadata = {} if shipped is None else {"shipped": shipped}
    assert model_notices(metadata, CalibrationRecord.model_construct(reason=reason)) == expected
    assert model_notices(metadata, None) == ()


def warnings_of_age(group: HealthyGroup) -> list[str]:
    return list(model_warnings(replace(scored(0.9), compared_with=group), SETTINGS))


def test_a_subject_older_than_the_reference_has_a_warning_with_both_ages() -> None:
    (warning,) = warnings_of_age(HealthyGroup(83, 78, "male", (20, 78)))
    assert warning.startswith("the subject is 83 years old; the reference holds healthy subjects of 20 to 78 years")
    assert "compared with those of 78 years" in warning


def test_a_subject_of_unknown_age_has_a_warning() -> None:
    (warning,) = warnings_of_age(HealthyGroup(None, None, "", (20, 78)))
    assert "age of the subject is unknown" in warning
    assert "healthy subjects of all ages (20 to 78 years)" in warning


def test_a_subject_of_an_age_within_the_reference_has_no_warning() -> None:
    assert warnings_of_age(HealthyGroup(78, 78, "", (20, 78))) == []
