from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.calibration.operating_point import evidence_edges, exceedance
from anomaly.core.progress import no_progress
from anomaly.inference.model import Model, load_model
from anomaly.runs.score_store import ScoreStore
from pipelines.calibration_job import CalibrationJob, read_exceedance
from pipelines.scan_input import PreparedScanRef, open_scans
from tests.pipelines.cohorts import make_cohort
from tests.pipelines.conftest import Trained


@pytest.fixture(scope="module")
def model(trained: Trained) -> Model:
    return Model(load_model(trained.model, device="cpu").bundle)


@pytest.fixture(scope="module")
def scans(model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedScanRef]:
    folder = make_cohort(tmp_path_factory.mktemp("healthy") / "cohort", [200, 201])
    return list(open_scans([folder], folder / "ingested", model.bundle.config, jobs=1))


def test_scores_and_exceedance_are_those_of_the_scan(
    model: Model, scans: list[PreparedScanRef], tmp_path: Path
) -> None:
    job = CalibrationJob(model, ScoreStore(tmp_path))
    for scan, score in zip(scans, job.run(scans, 2, no_progress), strict=True):
        scored = model.postprocess(model.infer(scan.load()))
        assert score.scores == scored.scores
        expected = exceedance(scored.evidence[scored.mask], evidence_edges())
        np.testing.assert_array_equal(read_exceedance(job.store, score), expected)


def test_what_is_kept_in_the_model_folder_names_no_subject_scan_or_file(
    model: Model, scans: list[PreparedScanRef], tmp_path: Path
) -> None:
    list(CalibrationJob(model, ScoreStore(tmp_path)).run(scans, 2, no_progress))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert len(kept) == 4
    for path in kept:
        assert "sub-20" not in str(path.relative_to(tmp_path))
        assert b"sub-20" not in path.read_bytes()
        assert b"raw/" not in path.read_bytes()
