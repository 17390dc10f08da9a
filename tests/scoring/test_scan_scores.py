from __future__ import annotations

import numpy as np
import pytest

from anomaly.scoring.acquisition_shift import AcquisitionReference
from anomaly.scoring.reference import HealthyReference
from anomaly.scoring.scan_scores import SCORE_DESCRIPTIONS, combined_score, scan_scores

EVIDENCE = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
EVERYWHERE = np.ones((10, 10, 10), dtype=bool)


def reference(**moments: tuple[float, float]) -> HealthyReference:
    acquisition = AcquisitionReference(np.zeros((0, 9), dtype=np.float32))
    means, stds = ({name: m[i] for name, m in moments.items()} for i in (0, 1))
    return HealthyReference({}, {}, EVIDENCE, acquisition, means, stds)


def test_the_scores_summarise_the_evidence_in_the_brain() -> None:
    found = scan_scores(EVIDENCE, EVERYWHERE, {"kl": 7.0}, top_fraction=0.01)
    assert found["reconstruction"] == np.arange(990, 1000).mean()
    assert found["reconstruction_p99"] == pytest.approx(np.percentile(EVIDENCE, 99))
    assert found["reconstruction_mean"] == EVIDENCE.mean()
    assert found["kl"] == 7.0


def test_voxels_outside_the_mask_do_not_count() -> None:
    mask = EVIDENCE < 100
    assert scan_scores(EVIDENCE, mask, {}, top_fraction=0.01)["reconstruction"] == 99


def test_at_least_one_voxel_counts() -> None:
    assert scan_scores(EVIDENCE, EVIDENCE > 996, {}, top_fraction=0.01)["reconstruction"] == 999


def test_the_combined_score_is_a_mean_in_healthy_standard_deviations() -> None:
    scores = {"reconstruction": 5.0, "kl": 10.0, "reconstruction_p99": 100.0}
    assert combined_score(scores, reference(reconstruction=(1.0, 2.0), kl=(4.0, 3.0))) == (2.0 + 2.0) / 2


def test_a_score_without_healthy_statistics_is_combined_as_it_is() -> None:
    assert combined_score({"reconstruction": 5.0}, reference()) == 5.0
    assert combined_score({"reconstruction": 5.0}, reference(reconstruction=(1.0, 0.0))) == 4.0


def test_every_score_has_a_meaning() -> None:
    assert set(scan_scores(EVIDENCE, EVERYWHERE, {}, 0.01)) <= set(SCORE_DESCRIPTIONS)
    assert all(SCORE_DESCRIPTIONS.values())
