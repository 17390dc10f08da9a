"""New scans in; evidence maps, scan scores, p-values and flags out.

Each scan's result is a file of its own, written last, so that a run interrupted anywhere continues where it
stopped. One bad scan is a row of ``refused_failed.tsv``, never a stop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from anomaly.bundle.ensemble import open_bundle
from anomaly.bundle.store import Bundle
from anomaly.calibration import record as calibrations
from anomaly.calibration.record import Calibration
from anomaly.cohort.table import ScanRecord
from anomaly.core.errors import ConfigError, ScanRefusedError
from anomaly.core.files import atomic_path, read_json, sha256_of_json, write_json
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import now
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.export.nifti import write_nifti
from anomaly.runs.tables import write_tables
from anomaly.runs.writer import calibration_id, check_run_folder, write_run
from anomaly.scoring.native_space import in_scan_space
from anomaly.scoring.scorer import ScoredVolume
from anomaly.scoring.settings import EvidenceSettings
from anomaly.training.hardware import choose_device
from pipelines.common import audit
from pipelines.scan_input import Arrival, Intake, open_intake

log = logging.getLogger(__name__)
UNSURE_SIMILARITY = 0.15  # a scan this close to the refusal limit is scored, and marked


@dataclass(frozen=True)
class ScoreRequest:
    """What to score, with what, and where to put it.

    Parameters
    ----------
    model
        The bundle folder.
    sources
        Raw scans in any form ingest understands, or one ingested cohort.
    output
        The run folder.
    alpha, calibration
        Which calibration to use: by promised rate, by id, or (neither given) the newest.
    split
        Only scans of this split, where the cohort or manifest names splits.
    jobs
        Processes that prepare raw scans; 0 = one per core.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    overwrite
        Score again what has been scored.
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


def score(request: ScoreRequest, progress: Progress = no_progress) -> dict[str, Any]:
    """Score every scan of the sources and write the run folder.

    Returns
    -------
    dict
        Counts of scored, flagged, refused, failed and duplicate scans; the model, calibration and run.

    Raises
    ------
    BundleError
        The model is damaged, or the run folder holds results of another model or calibration.
    UncalibratedError
        A calibration was asked for that does not exist.
    """
    bundle = open_bundle(request.model, choose_device(request.device))
    calibration = _calibration(request)
    if not request.overwrite:
        check_run_folder(request.output, bundle.model_id, calibration)
    write_run(request.output, bundle.metadata, bundle.config.scoring.model_dump(mode="json"), calibration)
    audit(request.output, "score", model_id=bundle.model_id, calibration_id=calibration_id(calibration))
    desk = _Desk(bundle, calibration, request.output, request.overwrite)
    intake = open_intake(
        request.sources, request.output / "ingested", bundle.config, request.jobs, split=request.split
    )
    results = list(_score_all(desk, intake, progress))
    write_tables(request.output, results)
    return _summary(results, request, bundle, calibration)


def _score_all(desk: _Desk, intake: Intake, progress: Progress) -> Iterator[ScanScore]:
    """Yield results in the order of the scans; files are written while the next scan is in the network."""
    waiting: list[Future[ScanScore]] = []
    with ThreadPoolExecutor(max_workers=1) as writer, closing(intake):
        for done, arrival in enumerate(intake):
            progress(done, intake.total, f"scored {arrival.record.scan_id}")
            waiting.append(desk.take(arrival, writer))
            while len(waiting) > 2:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
    progress(intake.total, intake.total, "done")


@dataclass(frozen=True, eq=False)
class _Desk:
    """Where one scan after another is scored; the model is loaded once."""

    bundle: Bundle
    calibration: Calibration | None
    folder: Path
    overwrite: bool

    def take(self, arrival: Arrival, writer: ThreadPoolExecutor) -> Future[ScanScore]:
        """Ask the network about one scan; the rest is done by ``writer`` while the next one is in the network."""
        record = arrival.record
        before = self._before(record)
        if before is not None:
            return _done(before)
        if record.status is not ScanStatus.ACCEPTED:
            return writer.submit(self._keep, _blank(record, self), record)
        try:
            voxels, mask = arrival.load()
            began = perf_counter()
            raw = self.bundle.scorer.infer(voxels, mask, record.covariates)
        except ScanRefusedError as refusal:
            return writer.submit(self._keep, _refused(record, refusal, self), record)
        except Exception as error:  # noqa: BLE001 - one bad scan must never stop a batch; the error is recorded
            return writer.submit(self._keep, _failed(record, error, self), record)
        seconds = perf_counter() - began
        return writer.submit(self._deliver_or_record, record, raw, voxels, mask, seconds)

    def key(self, record: ScanRecord) -> str:
        """Return what a stored result must have been made from to be used again."""
        return sha256_of_json(
            [
                record.content_hash,
                record.status,
                record.reason,
                self.bundle.model_id,
                calibration_id(self.calibration),
            ]
        )

    def _before(self, record: ScanRecord) -> ScanScore | None:
        path = self._result_path(record.scan_id)
        if self.overwrite or not path.is_file():
            return None
        found = ScanScore.from_json(read_json(path))
        return found if found.provenance.get("key") == self.key(record) else None

    def _result_path(self, scan_id: str) -> Path:
        return self.folder / scan_id / "score.json"

    def _deliver_or_record(
        self, record: ScanRecord, raw: Any, voxels: FloatArray, mask: MaskArray, seconds: float
    ) -> ScanScore:
        try:
            scored = self.bundle.scorer.postprocess(raw, voxels, mask)
            return self._keep(self._deliver(record, scored, voxels), record, look_seconds=round(seconds, 4))
        except Exception as error:  # noqa: BLE001 - a full disk or a broken grid fails this scan, not the batch
            return self._keep(_failed(record, error, self), record)

    def _deliver(self, record: ScanRecord, scored: ScoredVolume, voxels: FloatArray) -> ScanScore:
        """Write the maps of a scan and return its result."""
        threshold = self.calibration.record.voxel_threshold if self.calibration else None
        settings, grid = self.bundle.config.scoring, self.bundle.grid
        native = in_scan_space(
            scored, grid, record.geometry, record.template_from_scan_matrix, threshold, settings.min_region_ml
        )
        name = record.scan_id
        map_path = f"{name}/{name}_desc-anomaly_map.nii.gz"
        mask_path = f"{name}/{name}_desc-flagged_mask.nii.gz"
        write_nifti(self.folder / map_path, native.evidence, record.geometry, "int16")
        write_nifti(self.folder / mask_path, native.flagged, record.geometry, "uint8")
        _write_template_volumes(self.folder / name / f"{name}_space-template_volumes.npz", scored, voxels, grid)
        declared = scored.scores[settings.scan_score]
        result = replace(
            _blank(record, self),
            status=ScanStatus.SCORED,
            score=declared,
            scores=scored.scores,
            numbers=dict(record.numbers) | _numbers(scored),
            regions=native.regions,
            neighbours=scored.neighbours,
            warnings=_warnings(scored, settings),
            map_path=map_path,
            mask_path=mask_path,
        )
        return result if self.calibration is None else _judged(result, settings.scan_score, self.calibration)

    def _keep(self, result: ScanScore, record: ScanRecord, **cost: float) -> ScanScore:
        kept = replace(result, provenance={"key": self.key(record), "scored_at": now(), **cost})
        write_json(self._result_path(record.scan_id), asdict(kept))
        return kept


def _blank(record: ScanRecord, desk: _Desk) -> ScanScore:
    return ScanScore(
        scan_id=record.scan_id,
        status=record.status,
        subject=record.subject,
        session=record.session,
        modality=record.modality,
        source=record.source,
        content_hash=record.content_hash,
        reason_code=record.reason_code,
        reason=record.reason,
        remedy=record.remedy,
        numbers=dict(record.numbers),
        model_id=desk.bundle.model_id,
        calibration_id=calibration_id(desk.calibration) or "",
    )


def _refused(record: ScanRecord, refusal: ScanRefusedError, desk: _Desk) -> ScanScore:
    return replace(
        _blank(record, desk),
        status=ScanStatus.REFUSED,
        reason_code=refusal.code,
        reason=refusal.reason,
        remedy=refusal.remedy,
    )


def _failed(record: ScanRecord, error: Exception, desk: _Desk) -> ScanScore:
    log.error("scoring %s failed", record.scan_id, exc_info=error)
    return replace(
        _blank(record, desk),
        status=ScanStatus.FAILED,
        reason_code="error",
        reason=f"{type(error).__name__}: {error}",
        remedy="run the same command again; if it fails again, report this error with the log",
    )


def _judged(result: ScanScore, declared: str, calibration: Calibration) -> ScanScore:
    known = {name: value for name, value in result.scores.items() if name in calibration.score_names}
    p_values, percentiles = calibration.p_values(known), calibration.percentiles(known)
    return replace(
        result,
        p_values=p_values,
        percentiles=percentiles,
        p_value=p_values[declared],
        percentile=percentiles[declared],
        flagged=calibration.flag(result.scores[declared]),
    )


def _numbers(scored: ScoredVolume) -> dict[str, float]:
    found = {"similarity": scored.similarity}
    return (
        found if scored.acquisition_shift is None else found | {"acquisition_p": scored.acquisition_shift.p_value}
    )


def _warnings(scored: ScoredVolume, settings: EvidenceSettings) -> tuple[str, ...]:
    """Return what a reader must know before trusting the score."""
    found, least, unlike = [], settings.min_similarity, scored.acquisition_shift
    if scored.similarity < least + UNSURE_SIMILARITY:
        found.append(
            f"unlike the training scans: correlation {scored.similarity:.2f} with the mean healthy scan, close to "
            f"the limit of {least:.2f} below which scans are refused; read the score with care"
        )
    if unlike is not None and unlike.p_value < settings.acquisition_alpha:
        found.append(
            f"intensities and texture unlike the training scans, as of another scanner or protocol ({unlike}); if "
            "so, the promised false-flag rate does not hold, and healthy scans of that scanner are needed"
        )
    return tuple(found)


def _write_template_volumes(path: Path, scored: ScoredVolume, voxels: FloatArray, grid: Geometry) -> None:
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            input=voxels.astype(np.float16),
            reconstruction=scored.reconstruction.astype(np.float16),
            evidence=scored.evidence.astype(np.float16),
            mask=scored.mask,
            affine=grid.affine,
            **_pictures(scored),
        )


def _pictures(scored: ScoredVolume) -> dict[str, Any]:
    """Return the slices of the neighbours by name: a run must be complete without the model."""
    return {f"neighbours_{plane}": slices for plane, slices in scored.neighbour_slices.items()}


def _calibration(request: ScoreRequest) -> Calibration | None:
    if request.calibration is not None:
        found = calibrations.load(request.model, request.calibration)
        if request.alpha not in (None, found.record.alpha):
            raise ConfigError(
                f"calibration {request.calibration} promises {found.record.alpha:g}, --alpha asks for "
                f"{request.alpha:g}; give one of the two"
            )
        return found
    if request.alpha is not None:
        return calibrations.for_alpha(request.model, request.alpha)
    return calibrations.latest(request.model)


def _summary(
    results: Sequence[ScanScore], request: ScoreRequest, bundle: Bundle, calibration: Calibration | None
) -> dict[str, Any]:
    def count(status: ScanStatus) -> int:
        return sum(result.status is status for result in results)

    return {
        "scored": count(ScanStatus.SCORED),
        "flagged": sum(bool(result.flagged) for result in results),
        "scored_with_warnings": sum(bool(result.warnings) for result in results),
        "refused": count(ScanStatus.REFUSED),
        "failed": count(ScanStatus.FAILED),
        "duplicate": count(ScanStatus.DUPLICATE),
        "run": str(request.output),
        "model_id": bundle.model_id,
        "calibration_id": calibration_id(calibration),
        "alpha": calibration.record.alpha if calibration else None,
        "not_scored": [
            {"scan_id": r.scan_id, "status": r.status.value, "reason": r.reason, "remedy": r.remedy}
            for r in results
            if r.status is not ScanStatus.SCORED
        ],
    }


def _done(result: ScanScore) -> Future[ScanScore]:
    future: Future[ScanScore] = Future()
    future.set_result(result)
    return future
