"""Score new scans: evidence maps, scan scores, p-values and flags.

The result of each scan is a file of its own, written last, so that a run that was interrupted continues where it
stopped. A scan that is refused or fails is a row of ``refused_failed.tsv``; the others are scored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomaly.core.errors import BundleError
from anomaly.core.progress import Progress, no_progress
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.core.scan_result import ScanResult
from anomaly.export.outputs import write_outputs
from anomaly.inference.model import InferredScan, Model, load_model
from anomaly.runs.reader import read_scores
from anomaly.runs.score_store import ScoreStore
from anomaly.runs.tables import write_tables
from anomaly.runs.writer import calibration_id, check_run_folder, write_run_info, write_template_volumes
from pipelines.common import audit
from pipelines.scan_input import open_scans
from pipelines.scan_names import with_distinct_names
from pipelines.scoring_job import ScoringJob


@dataclass(frozen=True)
class ScoreRequest:
    """What to score, with which model, and where to put it.

    Parameters
    ----------
    model
        The bundle folder.
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
    job = RunScoringJob(model, ScoreStore(output), request.overwrite)
    work = output / "ingested"
    with closing(
        open_scans(request.sources, work, bundle.config, request.jobs, split=request.split, split_required=True)
    ) as scans:
        _check_replaced(output, model, scans.scan_ids)
        write_run_info(output, bundle.metadata, bundle.config.scoring.model_dump(mode="json"), model.calibration)
        audit(output, "score", model_id=model.model_id, calibration_id=calibration_id(model.calibration))
        named = with_distinct_names(scans, job.store, model.model_id, model.calibration_id)
        results = list(job.run(named, scans.total, progress))
    in_run = _with_earlier_results(output, results)
    write_tables(output, in_run)
    return _summary(results, len(in_run), request, model)


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
    """Scores scans into a run folder: maps in their own grids, calibrated results, and volumes for reports."""

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
        "warnings": [{"scan_id": r.scan_id, "warnings": list(r.warnings)} for r in results if r.warnings],
        "not_scored": [
            {"scan_id": r.scan_id, "status": r.status.value, "reason": r.reason, "remedy": r.remedy}
            for r in results
            if r.status is not ScanStatus.SCORED
        ],
    }
