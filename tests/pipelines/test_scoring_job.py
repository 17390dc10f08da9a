from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from anomaly.core.errors import OutputError
from anomaly.core.progress import no_progress
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.export.nifti import write_nifti
from anomaly.inference.model import InferredScan, Model, load_model
from anomaly.inference.template_scan import TemplateScan
from anomaly.runs.score_store import ScoreStore
from anomaly.scoring.scorer import Scorer
from pipelines.scan_input import PreparedScanRef, open_scans
from pipelines.scoring_job import ScoringJob
from tests.pipelines.cohorts import GRID, healthy, make_cohort
from tests.pipelines.conftest import Trained


class DeclaredScoreJob(ScoringJob):
    """Keeps the declared score and writes no files."""

    def finish(self, blank: ScanScore, inferred: InferredScan) -> ScanScore:
        return replace(blank, status=ScanStatus.SCORED, scores=self.model.postprocess(inferred).scores)


@pytest.fixture(scope="module")
def model(trained: Trained) -> Model:
    return load_model(trained.model, device="cpu")


def scans_of(folder: Path, model: Model) -> list[PreparedScanRef]:
    return list(open_scans([folder], folder / "ingested", model.bundle.config, jobs=1))


def test_results_come_in_the_order_of_the_scans(model: Model, tmp_path: Path) -> None:
    scans = scans_of(make_cohort(tmp_path / "cohort", range(300, 305)), model)
    results = list(DeclaredScoreJob(model, ScoreStore(tmp_path / "run")).run(scans, 5, no_progress))

    assert [result.scan_id for result in results] == [scan.record.scan_id for scan in scans]
    assert all(result.scores["reconstruction"] > 0 for result in results)
    assert all(result.provenance["inference_seconds"] > 0 for result in results)


def test_a_stored_result_is_used_again_unless_it_is_overwritten(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = scans_of(make_cohort(tmp_path / "cohort", [300]), model)
    job = DeclaredScoreJob(model, ScoreStore(tmp_path / "run"))
    (first,) = job.run(scans, 1, no_progress)
    inferred: list[str] = []

    def infer(self: Model, scan: TemplateScan) -> InferredScan:
        inferred.append(scan.scan_id)
        raise RuntimeError("no network here")

    monkeypatch.setattr(Model, "infer", infer)
    assert list(job.run(scans, 1, no_progress)) == [first]
    assert inferred == []
    (again,) = replace(job, overwrite=True).run(scans, 1, no_progress)
    assert (again.status, inferred) == (ScanStatus.FAILED, ["sub-300_T1w"])


@pytest.mark.parametrize("uses_covariates", [True, False])
def test_a_scan_is_scored_again_for_another_age_only_by_a_model_that_uses_it(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uses_covariates: bool
) -> None:
    monkeypatch.setattr(Scorer, "uses_covariates", uses_covariates)
    (scan,) = scans_of(make_cohort(tmp_path / "cohort", [300]), model)
    job = DeclaredScoreJob(model, ScoreStore(tmp_path / "run"))
    older = replace(scan.record, age=78.6)
    assert (job.key(older) != job.key(scan.record)) == uses_covariates
    assert (job.describe(older).age, job.describe(scan.record).age) == (78, 90)  # 90 and older are not told apart


def test_a_scan_that_failed_is_scored_by_the_next_run(model: Model, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [310])
    volume = cohort / "volumes" / "sub-310_T1w.nii"
    volume.write_bytes(b"broken")
    job = DeclaredScoreJob(model, ScoreStore(tmp_path / "run"))
    (failed,) = job.run(scans_of(cohort, model), 1, no_progress)
    write_nifti(volume, healthy(310)[0], GRID)
    (scored,) = job.run(scans_of(cohort, model), 1, no_progress)

    assert (failed.status, failed.reason_code) == (ScanStatus.FAILED, "error")
    assert "run the same command again" in failed.remedy
    assert (scored.status, scored.reason) == (ScanStatus.SCORED, "")


class FailingJob(DeclaredScoreJob):
    """Cannot finish the scan 301."""

    error: ClassVar[Exception]

    def finish(self, blank: ScanScore, inferred: InferredScan) -> ScanScore:
        if "301" in blank.scan_id:
            raise self.error
        return super().finish(blank, inferred)


def test_an_error_while_files_are_written_fails_that_scan_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingJob, "error", OSError("a grid that cannot be written"), raising=False)
    scans = scans_of(make_cohort(tmp_path / "cohort", range(300, 303)), model)
    results = list(FailingJob(model, ScoreStore(tmp_path / "run")).run(scans, 3, no_progress))
    assert [result.status for result in results] == [ScanStatus.SCORED, ScanStatus.FAILED, ScanStatus.SCORED]
    assert results[1].reason == "OSError: a grid that cannot be written"


def test_a_full_disk_stops_the_batch_and_keeps_what_is_scored(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailingJob, "error", OutputError("no space left"), raising=False)
    scans, store = scans_of(make_cohort(tmp_path / "cohort", range(300, 303)), model), ScoreStore(tmp_path / "run")
    with pytest.raises(OutputError, match="no space left"):
        list(FailingJob(model, store).run(scans, 3, no_progress))
    assert (store.folder / "sub-300_T1w" / "score.json").is_file()
    assert not (store.folder / "sub-301_T1w" / "score.json").exists()
    results = list(DeclaredScoreJob(model, store).run(scans, 3, no_progress))
    assert [result.status for result in results] == [ScanStatus.SCORED] * 3


def test_an_interrupt_finishes_the_files_of_the_scans_before(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = Model.infer

    def interrupted(self: Model, scan: TemplateScan) -> InferredScan:
        if "301" in scan.scan_id:
            raise KeyboardInterrupt
        return infer(self, scan)

    monkeypatch.setattr(Model, "infer", interrupted)
    scans, store = scans_of(make_cohort(tmp_path / "cohort", [300, 301]), model), ScoreStore(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        list(DeclaredScoreJob(model, store).run(scans, 2, no_progress))
    assert [path.parent.name for path in store.folder.glob("*/score.json")] == ["sub-300_T1w"]


@pytest.mark.slow
def test_the_networks_do_not_wait_for_the_files_of_the_scan_before(model: Model, tmp_path: Path) -> None:
    scans = scans_of(make_cohort(tmp_path / "cohort", [300, 301]), model)
    job = DeclaredScoreJob(model, ScoreStore(tmp_path / "run"))
    with ThreadPoolExecutor(1) as writer:
        blocked = writer.submit(time.sleep, 0.5)
        futures = [job.submit(scan, writer) for scan in scans]
        assert not blocked.done()
        assert not any(future.done() for future in futures)
    assert [future.result().status for future in futures] == [ScanStatus.SCORED] * 2
