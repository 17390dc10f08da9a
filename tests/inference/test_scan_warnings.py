from __future__ import annotations

import numpy as np
import pytest

from anomaly.inference.scan_warnings import SIMILARITY_MARGIN, model_warnings
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
