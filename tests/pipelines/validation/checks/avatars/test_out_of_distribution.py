from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.models.registry import create, parse_settings
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.checks.avatars.out_of_distribution import (
    ScoresByPart,
    check_out_of_distribution,
    detection_measures,
)
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    under_test,
)


def outcome(shift: float) -> ScoresByPart:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(3, 400))
    kinds = np.array(["eyepatch", "hat", "graphic shirt"])[np.arange(400) % 3]
    return ScoresByPart(normal[0], normal[1], normal[2] + shift * (kinds != "hat"), kinds)


def test_detection_is_measured_for_each_kind() -> None:
    found = detection_measures(outcome(shift=6), (0.05, 0.1))
    assert found["auroc_eyepatch"] > 0.99
    assert found["auroc_hat"] == pytest.approx(0.5, abs=0.1)
    assert found["sensitivity_0.05"] == pytest.approx(2 / 3, abs=0.05)
    assert found["fpr_not_exceeded"] == 1


def test_an_exceeded_target_fpr_is_detected() -> None:
    honest = outcome(shift=0)
    broken = ScoresByPart(honest.calibration, honest.test + 1, honest.out_of_distribution, honest.kinds)
    found = detection_measures(broken, (0.05, 0.1))
    assert found["fpr_not_exceeded"] == 0
    assert found["fpr_0.05"] > 0.15


@pytest.mark.slow
def test_principal_components_detect_out_of_distribution_avatars(dataset: Dataset, tmp_path: Path) -> None:
    detector = create(parse_settings({"family": "pca", "components": 5}, "test"), dataset.train.grid)
    fit(detector, dataset.train, (), FitRun(tmp_path))
    found = check_out_of_distribution(under_test(dataset, detector, tmp_path))
    assert found.measures["auroc"] > 0.99
    assert found.measures["sensitivity_0.05"] > 0.95
    assert [row["avatars"] for row in found.tables["By kind"]] == [
        "with an eyepatch",
        "with a hat",
        "with a graphic shirt",
    ]
