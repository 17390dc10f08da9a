"""Held-out healthy scans in, a promise about the false-flag rate out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomaly.bundle.ensemble import open_bundle
from anomaly.bundle.store import Bundle, hash_subject
from anomaly.calibration.conformal import minimum_alpha
from anomaly.calibration.operating_point import evidence_edges, exceedance, voxel_threshold
from anomaly.calibration.record import (
    CalibrationRecord,
    Purpose,
    Scope,
    VoxelPoint,
    append,
    check_leakage,
)
from anomaly.calibration.record import calibrate as make_calibration
from anomaly.cohort.table import ScanRecord
from anomaly.core.errors import AlphaTooSmallError, CohortError, ConfigError, ScanRefusedError
from anomaly.core.files import atomic_path
from anomaly.core.progress import Progress, no_progress
from anomaly.core.provenance import user_name
from anomaly.core.results import ScanStatus
from anomaly.training.hardware import choose_device
from pipelines.common import audit
from pipelines.scan_input import Arrival, Intake, open_intake

SPLIT = "calibration"


@dataclass(frozen=True, eq=False)
class _Healthy:
    """A scored healthy scan: its scores, and how its evidence is distributed (shares above each edge)."""

    record: ScanRecord
    scores: dict[str, float]
    tail: np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def calibrate(
    model: Path,
    cohort: Path,
    alphas: Sequence[float],
    reason: str,
    *,
    jobs: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Score held-out healthy scans once and append one calibration record per alpha.

    Parameters
    ----------
    model
        The bundle folder.
    cohort
        An ingested cohort or raw scans. Where scans name a split, only ``calibration`` is used; only healthy ones
        ever are.
    alphas
        Promised false-flag rates; nothing is written unless all of them can be promised.
    reason
        Why, and for which scanner and population.

    Raises
    ------
    AlphaTooSmallError
        An alpha is below 1 / (n + 1).
    LeakageError
        A scan, or another of the same subject, was seen in training.
    ConfigError
        The reason is empty, or an alpha is no share.
    CohortError
        No healthy scan can be scored.
    """
    if not reason.strip():
        raise ConfigError("a calibration needs a reason (--reason): why, and for which scanner and population")
    if wrong := [alpha for alpha in alphas if not 0 < alpha < 1]:
        raise ConfigError(f"found --alpha {wrong[0]:g}; expected a share between 0 and 1, e.g. 0.05 for 5 %")
    bundle = open_bundle(model, choose_device(device))
    work = model / "calibration_scans"
    with closing(open_intake([cohort], work / "ingested", bundle.config, jobs, split=SPLIT)) as intake:
        arrivals, refused = _healthy_ones(intake, bundle)
        _refuse_early(bundle, arrivals, alphas)
        healthy, unlike = _score(bundle, arrivals, work / "scored" / bundle.model_id, progress)
    purpose = Purpose(user_name(), reason, _scope(bundle, cohort, healthy), bundle.model_id)
    records = _append(model, bundle, healthy, alphas, purpose)
    audit(model, "calibrate", model_id=bundle.model_id, calibrations=[r.calibration_id for r in records])
    return {
        "model_id": bundle.model_id,
        "healthy_scans": len(healthy),
        "refused": len(refused) + len(unlike),
        **{f"alpha_{r.alpha:g}": _sentence(r) for r in records},
        "calibrations": [r.model_dump(mode="json") for r in records],
        "not_scored": [*refused, *unlike],
    }


def _healthy_ones(intake: Intake, bundle: Bundle) -> tuple[list[Arrival], list[dict[str, str]]]:
    """Return the healthy scans that were accepted, and the scans that were not, with why."""
    kept, refused = [], []
    for arrival in intake:
        record = arrival.record
        if record.status is not ScanStatus.ACCEPTED:
            if record.status is not ScanStatus.DUPLICATE:
                refused.append(_refused(record.scan_id, record.status, record.reason, record.remedy))
        elif record.group in {"", "healthy"}:
            kept.append(arrival)
    if not kept:
        why = "".join(f"; refused {scan['scan_id']}: {scan['reason']}" for scan in refused[:1])
        raise CohortError(
            f"found no accepted healthy {bundle.config.modality.value} scan of the split {SPLIT!r}, or of none"
            f"{why}; give held-out healthy scans of that modality"
        )
    return kept, refused


def _refused(scan_id: str, status: ScanStatus, reason: str, remedy: str) -> dict[str, str]:
    return {"scan_id": scan_id, "status": status.value, "reason": reason, "remedy": remedy}


def _refuse_early(bundle: Bundle, arrivals: Sequence[Arrival], alphas: Sequence[float]) -> None:
    """Refuse what cannot be promised before minutes are spent on scoring."""
    seen = bundle.training_fingerprints()
    scans = pd.DataFrame([_identity(arrival.record) for arrival in arrivals])
    check_leakage(seen["subjects"], seen["content_hashes"], scans)
    least = minimum_alpha(len(arrivals))
    if min(alphas) < least:
        raise AlphaTooSmallError(
            f"alpha {min(alphas):g} cannot be promised with {len(arrivals)} healthy scans; the smallest that can "
            f"is 1/(n + 1) = {least:.4f}; give more held-out healthy scans or a larger alpha"
        )


def _score(
    bundle: Bundle, arrivals: Sequence[Arrival], folder: Path, progress: Progress
) -> tuple[list[_Healthy], list[dict[str, str]]]:
    """Score the scans, keeping each result on disk, so that an interrupted calibration continues."""
    healthy, refused = [], []
    for done, arrival in enumerate(arrivals):
        progress(done, len(arrivals), f"scoring {arrival.record.scan_id}")
        try:
            healthy.append(_scored(bundle, arrival, folder))
        except ScanRefusedError as error:
            refused.append(_refused(arrival.record.scan_id, ScanStatus.REFUSED, error.reason, error.remedy))
    progress(len(arrivals), len(arrivals), "done")
    return healthy, refused


def _scored(bundle: Bundle, arrival: Arrival, folder: Path) -> _Healthy:
    path = folder / f"{arrival.record.content_hash[:32]}.npz"
    if path.is_file():
        with np.load(path) as kept:
            scores = dict(zip(kept["names"].tolist(), kept["scores"].tolist(), strict=True))
            return _Healthy(arrival.record, scores, kept["tail"])
    voxels, mask = arrival.load()
    scored = bundle.scorer.score(voxels, mask, arrival.record.covariates)
    tail = exceedance(scored.evidence[scored.mask], evidence_edges())
    with atomic_path(path) as temporary:
        np.savez(temporary, names=list(scored.scores), scores=list(scored.scores.values()), tail=tail)
    return _Healthy(arrival.record, scored.scores, tail)


def _append(
    model: Path, bundle: Bundle, healthy: Sequence[_Healthy], alphas: Sequence[float], purpose: Purpose
) -> list[CalibrationRecord]:
    settings = bundle.config.scoring
    reference = pd.DataFrame(
        [_identity(h.record) | {f"score_{name}": value for name, value in h.scores.items()} for h in healthy]
    )
    tails = np.stack([h.tail for h in healthy])
    point = VoxelPoint(settings.voxel_alpha, voxel_threshold(tails, evidence_edges(), settings.voxel_alpha))
    made = [
        make_calibration(reference, alpha=alpha, score_name=settings.scan_score, purpose=purpose, voxels=point)
        for alpha in reversed(alphas)  # so that the first alpha is the newest, which `score` uses unless told
    ]
    for calibration in made:
        append(model, calibration)
    return [calibration.record for calibration in reversed(made)]


def _identity(record: ScanRecord) -> dict[str, str]:
    return {
        "scan_id": record.scan_id,
        "subject_hash": hash_subject(record.subject),
        "content_hash": record.content_hash,
    }


def _scope(bundle: Bundle, cohort: Path, healthy: Sequence[_Healthy]) -> Scope:
    return Scope(
        modality=bundle.config.modality.value,
        cohort=cohort.resolve().name,
        n_subjects=len({h.record.subject for h in healthy}),
    )


def _sentence(record: CalibrationRecord) -> str:
    return (
        f"flag above {record.threshold:.4g}; of healthy scans {record.expected_rate:.1%} are flagged "
        f"(95 % interval {record.interval_low:.1%} to {record.interval_high:.1%}, n = {record.n_healthy})"
    )
