"""Score new scans: evidence maps, scan scores, p-values and flags.

The result of each scan is a file of its own, written last, so that a run that was interrupted continues where it
stopped. A scan that is refused or fails is a row of ``refused_failed.tsv``; the others are scored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomaly.cohort.table import ScanRecord
from anomaly.core.audit_log import hash_files
from anomaly.core.errors import BundleError
from anomaly.core.progress import Progress, no_progress
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.core.scan_result import ScanResult
from anomaly.export.outputs import write_outputs
from anomaly.inference.model import InferredScan, Model, load_model
from anomaly.runs.layout import (
    NOT_SCORED_TSV,
    PENDING_FILES,
    RUN_INFO,
    SCAN_FILES,
    SCORES_PARQUET,
    SCORES_TSV,
    score_path,
)
from anomaly.runs.reader import read_scores
from anomaly.runs.score_store import FILES, ScoreStore
from anomaly.runs.score_tables import write_tables
from anomaly.runs.seal import check_list, check_results, files_of_scan, note_pending, read_pending, write_hashes
from anomaly.runs.writer import calibration_id, check_run_folder, write_run_info, write_template_volumes
from pipelines.common import audit
from pipelines.scan_input import open_scans
from pipelines.scan_names import with_distinct_names
from pipelines.scoring_job import ScoringJob

TABLES = (SCORES_PARQUET, SCORES_TSV, NOT_SCORED_TSV)


@dataclass(frozen=True)
class ScoreRequest:
    """What to score, with which model, and where to put it.

    Parameters
    ----------
    model
        The bundle folder, or the name of a shipped model.
    sources
        Raw scans in any form that ``anomaly ingest`` reads, or ingested cohorts.
    output
        The run folder.
    alpha, calibration
        Which calibration to use: by target false-positive rate, by id, or (neither given) the newest.
    split
        Only scans of this split, where the cohort or manifest names splits.
    jobs
        Processes that prepare raw scans; 0 = one per core.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    overwrite
        Score again what has been scored.
    allow_command
        Whether the model may run the program that its config names to extract brains.
    """

    model: Path
    sources: tuple[Path, ...]
    output: Path
    alpha: float | None = None
    calibration: str | None = None
    split: str | None = None
    jobs: int = 0
    device: str = "auto"
    overwrite: bool = False
    allow_command: bool = False


def score(request: ScoreRequest, progress: Progress = no_progress) -> dict[str, Any]:
    """Score every scan of the sources and write the run folder.

    The results that the folder holds of other sources, by the same model and calibration, stay in its tables.

    Returns
    -------
    dict
        Counts of scored, flagged, refused, failed and duplicate scans of this call, and of all scans in the run;
        the model, calibration and run; warnings and reasons by scan.

    Raises
    ------
    BundleError
        The model is damaged, or the run folder holds results of another model or calibration. With ``overwrite``:
        of scans that are not among the sources.
    InputError
        A result that the run keeps was changed after it was written, or no command wrote it.
    UncalibratedError
        A calibration was asked for that does not exist.
    """
    model = load_model(
        request.model,
        alpha=request.alpha,
        calibration=request.calibration,
        device=request.device,
        allow_command=request.allow_command,
    )
    bundle, output = model.bundle, request.output
    if not request.overwrite:
        check_run_folder(output, model.model_id, model.calibration)
        check_results(output, read_pending(output))
    check_list(output, SCAN_FILES)
    job = RunScoringJob(model, ScoreStore(output), request.overwrite, read_pending(output))
    work = output / "ingested"
    with closing(
        open_scans(request.sources, work, bundle.config, request.jobs, split=request.split, split_required=True)
    ) as scans:
        _check_replaced(output, model, scans.scan_ids)
        if request.overwrite:
            check_results(output, job.written, replaced=scans.scan_ids)
        _start(model, job)
        named = with_distinct_names(scans, job.store, model.model_id, model.calibration_id)
        results = list(job.run(named, scans.total, progress))
    in_run = _with_earlier_results(output, results)
    write_tables(output, in_run)
    note_pending(output, hash_files(output, [output / name for name in TABLES]))
    _seal(model, job, in_run)
    return _summary(results, len(in_run), request, model)


def _start(model: Model, job: RunScoringJob) -> None:
    """Note in the audit log that the run begins, and write its settings."""
    folder, bundle = job.store.folder, model.bundle
    if not job.written:
        (folder / PENDING_FILES).unlink(missing_ok=True)
    _audit(model, folder, event="started")
    settings = bundle.config.scoring.model_dump(mode="json")
    write_run_info(folder, bundle.metadata, settings, model.calibration, model.notices)
    note_pending(folder, hash_files(folder, [folder / RUN_INFO]))


def _seal(model: Model, job: RunScoringJob, in_run: Sequence[ScanScore]) -> None:
    """Note the hashes of all results in the audit log of the run."""
    folder = job.store.folder
    files = [path for result in in_run for path in files_of_scan(folder, result)]
    write_hashes(folder, SCAN_FILES, job.written, files)
    sealed = [folder / name for name in (RUN_INFO, *TABLES, SCAN_FILES)]
    _audit(model, folder, files=sealed, event="finished", lists=[SCAN_FILES])
    (folder / PENDING_FILES).unlink(missing_ok=True)


def _audit(model: Model, folder: Path, files: Sequence[Path] = (), **facts: Any) -> None:
    ids = {"model_id": model.model_id, "calibration_id": calibration_id(model.calibration)}
    audit(folder, "score", files=files, **facts, **ids)


def _check_replaced(folder: Path, model: Model, scan_ids: Collection[str]) -> None:
    """Raise BundleError if results of another model or calibration would stay in the run folder."""
    of_run = model.model_id, model.calibration_id
    others = [r.scan_id for r in read_scores(folder) if r.model_id and (r.model_id, r.calibration_id) != of_run]
    left = [scan_id for scan_id in others if scan_id not in scan_ids]
    if left:
        raise BundleError(
            f"{folder} holds results of another model or calibration for {len(left)} scans that are not among "
            f"these sources ({', '.join(left[:5])}); name their sources, too, or choose another folder"
        )


def _with_earlier_results(folder: Path, results: Sequence[ScanScore]) -> list[ScanScore]:
    """Return the results of this call, and those that the run folder holds of other scans."""
    of_this_call = {result.scan_id for result in results}
    return [*results, *(earlier for earlier in read_scores(folder) if earlier.scan_id not in of_this_call)]


@dataclass(frozen=True, eq=False)
class RunScoringJob(ScoringJob):
    """Scores scans into a run folder: maps in their own grids, calibrated results, and volumes for reports.

    Parameters
    ----------
    written
        Path → SHA-256 of the files that this call, and an interrupted one that it continues, wrote so far.
    """

    written: dict[str, str] = field(default_factory=dict)

    def save(self, score: ScanScore, record: ScanRecord, **costs: float) -> ScanScore:
        """Keep a result in the run folder, note the hashes of the files of its scan, and return it."""
        saved = super().save(score, record, **costs)
        result = score_path(self.store.folder, saved.scan_id)
        hashes = {**saved.provenance[FILES], **hash_files(self.store.folder, [result])}
        note_pending(self.store.folder, hashes)
        self.written.update(hashes)
        return saved

    def finish(self, blank: ScanScore, inferred: InferredScan) -> ScanScore:
        """Bring a scan back to its own grid, apply the calibration, and write its files."""
        result = self.model.to_result(inferred.scan, self.model.postprocess(inferred))
        outputs = self.write_outputs(result)
        return replace(
            blank,
            status=ScanStatus.SCORED,
            score=result.score,
            p_value=result.p_value,
            percentile=result.percentile,
            flagged=result.flagged,
            scores=result.scores,
            p_values=result.p_values,
            percentiles=result.percentiles,
            regions=result.regions,
            neighbours=result.neighbours,
            warnings=result.warnings,
            numbers=result.numbers,
            compared_with=result.compared_with,
            outputs=outputs,
        )

    def write_outputs(self, result: ScanResult) -> dict[str, str]:
        """Write the files of a scan, and return the paths of its outputs relative to the run folder."""
        folder = self.store.folder
        written = write_outputs(folder / result.scan_id, result)
        write_template_volumes(folder, result)
        return {name: path.relative_to(folder).as_posix() for name, path in written.items()}


def _summary(results: Sequence[ScanScore], in_run: int, request: ScoreRequest, model: Model) -> dict[str, Any]:
    def count(status: ScanStatus) -> int:
        return sum(result.status is status for result in results)

    return {
        "scored": count(ScanStatus.SCORED),
        "flagged": sum(bool(result.flagged) for result in results),
        "scored_with_warnings": sum(r.status is ScanStatus.SCORED and bool(r.warnings) for r in results),
        "refused": count(ScanStatus.REFUSED),
        "failed": count(ScanStatus.FAILED),
        "duplicate": count(ScanStatus.DUPLICATE),
        "scans_in_run": in_run,
        "run": str(request.output),
        "model_id": model.model_id,
        "calibration_id": calibration_id(model.calibration),
        "alpha": model.calibration.record.alpha if model.calibration else None,
        "notices": list(model.notices),
        "warnings": [{"scan_id": r.scan_id, "warnings": list(r.warnings)} for r in results if r.warnings],
        "not_scored": [
            {"scan_id": r.scan_id, "status": r.status.value, "reason": r.reason, "remedy": r.remedy}
            for r in results
            if r.status is not ScanStatus.SCORED
        ],
    }
