"""Calibrate a model: score held-out healthy scans, and fix the threshold of each target false-positive rate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomaly.bundle.ensemble import open_bundle
from anomaly.bundle.shipped import find_model, refuse_to_change
from anomaly.bundle.store import METADATA, Bundle, copy_model, verified_metadata
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.calibration.conformal import Floats, minimum_alpha
from anomaly.calibration.operating_point import evidence_edges, voxel_threshold
from anomaly.calibration.record import (
    CalibrationRecord,
    Purpose,
    Scope,
    VoxelOperatingPoint,
    append,
    check_leakage,
    load,
    record_path,
    reference_path,
)
from anomaly.calibration.record import calibrate as make_calibration
from anomaly.calibration.record import records as saved_records
from anomaly.cohort.table import ScanRecord
from anomaly.core.audit_log import read_audit_log
from anomaly.core.errors import AlphaTooSmallError, BundleError, CohortError, ConfigError
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import user_name
from anomaly.core.results import ScanStatus
from anomaly.inference.model import Model
from anomaly.models.device import choose_device
from anomaly.runs.score_store import ScoreStore
from pipelines.calibration_job import CalibrationJob, read_exceedance
from pipelines.common import audit
from pipelines.scan_input import NotScored, PreparedScanRef, healthy_scans, not_scored_row, open_scans

SPLIT = "calibration"


@dataclass(frozen=True, eq=False)
class HealthyScan:
    """A scored healthy scan.

    Parameters
    ----------
    scores
        Every scan score by name.
    exceedance
        Share of its brain voxels whose evidence is above each of ``evidence_edges()``.
    """

    record: ScanRecord
    scores: dict[str, float]
    exceedance: Floats


def calibrate(
    model: Path,
    cohort: Path,
    alphas: Sequence[float],
    reason: str,
    *,
    output: Path | None = None,
    jobs: int = 0,
    device: str = "auto",
    allow_command: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Score held-out healthy scans once and append one calibration record per alpha.

    Parameters
    ----------
    model
        The bundle folder, or the name of a shipped model, which needs an ``output``.
    cohort
        An ingested cohort or raw scans. Where scans name a split, only ``calibration`` is used; scans of another
        group than healthy never are.
    alphas
        Target false-positive rates; nothing is written unless there are enough healthy scans for all of them.
    reason
        Why, and for which scanner and population.
    output
        Calibrate a copy of the model in this folder, which is made, instead of the model itself.
    allow_command
        Whether the model may run the program that its config names to extract brains.

    Raises
    ------
    AlphaTooSmallError
        An alpha is below 1 / (n + 1).
    LeakageError
        A scan, or another of the same subject, was seen in training.
    ConfigError
        The reason is empty, or an alpha is not between 0 and 1.
    CohortError
        No healthy scan can be scored.
    BundleError
        The model, or a calibration that an interrupted call left, was altered; the model came with the package and
        no output is given; or the output holds another model.
    """
    if not reason.strip():
        raise ConfigError("a calibration needs a reason (--reason): why, and for which scanner and population")
    if wrong := [alpha for alpha in alphas if not 0 < alpha < 1]:
        raise ConfigError(f"found --alpha {wrong[0]:g}; expected a share between 0 and 1, e.g. 0.05 for 5 %")
    model = _model_to_change(find_model(model), output)
    bundle = open_bundle(model, choose_device(device), allow_command=allow_command)
    left = _left_unsealed(model)
    work = model / "calibration_scans"
    with closing(open_scans([cohort], work / "ingested", bundle.config, jobs, split=SPLIT)) as scans:
        accepted, not_accepted = healthy_scans(scans, bundle.config, SPLIT)
        _check_before_scoring(bundle, accepted, alphas)
        job = CalibrationJob(Model(bundle), ScoreStore(work / "scored" / bundle.model_id))
        healthy, not_scored = _score(job, accepted, progress)
    purpose = Purpose(user_name(), reason, _scope(bundle, cohort, healthy), bundle.model_id)
    audit(model, "calibrate", event="started", model_id=bundle.model_id)
    records = _append(model, bundle, healthy, alphas, purpose)
    _seal(model, bundle, [*left, *(record.calibration_id for record in records)])
    return {
        "model_id": bundle.model_id,
        "model": str(model),
        "healthy_scans": len(healthy),
        "refused": len(not_accepted) + len(not_scored),
        **{f"alpha_{r.alpha:g}": _sentence(r) for r in records},
        "calibrations": [r.model_dump(mode="json") for r in records],
        "warnings": _warnings([scan.record for scan in healthy]),
        "not_scored": [*not_accepted, *not_scored],
    }


def folder_to_change(model: Path, output: Path | None) -> Path:
    """Return the folder that a calibration changes: the output, or that of the model.

    Raises
    ------
    BundleError
        It is the folder of a shipped model.
    """
    folder = model if output is None else output
    refuse_to_change(folder)
    return folder


def _model_to_change(model: Path, output: Path | None) -> Path:
    """Return the folder of a model, or that of its copy, which is made unless an earlier call made it."""
    folder = folder_to_change(model, output)
    if output is None or output.resolve() == model.resolve():
        return folder
    model_id = verified_metadata(model)["model_id"]
    if (folder / METADATA).exists() and (found := verified_metadata(folder)["model_id"]) != model_id:
        raise BundleError(
            f"{folder} holds the model {found}, expected none or a copy of {model_id}; choose another output folder"
        )
    if METADATA not in read_audit_log(folder).sealed:
        audit(folder, "copy", files=copy_model(model, folder), model_id=model_id)
    return folder


def _seal(model: Path, bundle: Bundle, ids: list[str]) -> None:
    """Note the hashes of calibration records and of the reference scores in the audit log of the model."""
    written = [reference_path(model), *(record_path(model, name) for name in ids)]
    audit(model, "calibrate", files=written, event="finished", model_id=bundle.model_id, calibrations=ids)


def _left_unsealed(model: Path) -> list[str]:
    """Return the ids of the calibrations that a call appended before it was interrupted.

    Raises
    ------
    BundleError
        One of them does not agree with its hashes or its reference scores.
    """
    log = read_audit_log(model)
    if "calibrate" not in log.interrupted:
        return []
    sealed = {model / name for name in log.sealed}
    ids = [record.calibration_id for record in saved_records(model)]
    return [load(model, name).record.calibration_id for name in ids if record_path(model, name) not in sealed]


def _warnings(records: Sequence[ScanRecord]) -> list[dict[str, Any]]:
    return [{"scan_id": r.scan_id, "warnings": list(r.warnings)} for r in records if r.warnings]


def _check_before_scoring(bundle: Bundle, scans: Sequence[PreparedScanRef], alphas: Sequence[float]) -> None:
    """Raise an error for training scans and for too few scans before minutes are spent on scoring."""
    seen = bundle.training_subjects()
    subjects = {scan.record.subject for scan in scans}
    known = [seen.hash_subject(subject) for subject in subjects if seen.contains(subject)]
    check_leakage(known, seen.content_hashes, pd.DataFrame([_identity(scan.record, seen) for scan in scans]))
    smallest = minimum_alpha(len(scans))
    if min(alphas) < smallest:
        raise AlphaTooSmallError(
            f"a false-positive rate of {min(alphas):g} cannot be controlled with {len(scans)} healthy scans; the "
            f"smallest that can is 1/(n + 1) = {smallest:.4f}; give more held-out healthy scans or a larger alpha"
        )


def _score(
    job: CalibrationJob, scans: Sequence[PreparedScanRef], progress: Progress
) -> tuple[list[HealthyScan], list[NotScored]]:
    healthy, not_scored = [], []
    for scan, score in zip(scans, job.run(scans, len(scans), progress), strict=True):
        if score.status is ScanStatus.SCORED:
            healthy.append(HealthyScan(scan.record, score.scores, read_exceedance(job.store, score)))
        else:
            not_scored.append(not_scored_row(scan.record.scan_id, score))
    if not healthy:
        raise CohortError(
            f"none of {len(scans)} healthy scans could be scored; {not_scored[0]['scan_id']}: "
            f"{not_scored[0]['reason']}; {not_scored[0]['remedy']}"
        )
    return healthy, not_scored


def _append(
    model: Path, bundle: Bundle, healthy: Sequence[HealthyScan], alphas: Sequence[float], purpose: Purpose
) -> list[CalibrationRecord]:
    settings, training = bundle.config.scoring, bundle.training_subjects()
    reference = pd.DataFrame(
        [
            _identity(h.record, training) | {f"score_{name}": value for name, value in h.scores.items()}
            for h in healthy
        ]
    )
    tails = np.stack([scan.exceedance for scan in healthy])
    marked = sum(bool(scan.record.warnings) for scan in healthy)
    notes = (f"{marked} of {len(healthy)} scans have warnings of the quality checks",) if marked else ()
    point = VoxelOperatingPoint(
        settings.voxel_alpha, voxel_threshold(tails, evidence_edges(), settings.voxel_alpha)
    )
    made = [
        make_calibration(
            reference, alpha=alpha, score_name=settings.scan_score, purpose=purpose, voxels=point, notes=notes
        )
        for alpha in reversed(alphas)  # the first alpha becomes the newest record, which `score` uses by default
    ]
    for calibration in made:
        append(model, calibration)
    return [calibration.record for calibration in reversed(made)]


def _identity(record: ScanRecord, training: TrainingSubjects) -> dict[str, str]:
    return {
        "scan_id": record.scan_id,
        "subject_hash": training.hash_subject(record.subject),
        "content_hash": record.content_hash,
    }


def _scope(bundle: Bundle, cohort: Path, healthy: Sequence[HealthyScan]) -> Scope:
    return Scope(
        modality=bundle.config.modality.value,
        cohort=cohort.resolve().name,
        n_subjects=len({scan.record.subject for scan in healthy}),
    )


def _sentence(record: CalibrationRecord) -> str:
    return (
        f"flag above {record.threshold:.4g}; of healthy scans {record.expected_rate:.1%} are flagged "
        f"(95 % interval {record.interval_low:.1%} to {record.interval_high:.1%}, n = {record.n_healthy})"
    )
