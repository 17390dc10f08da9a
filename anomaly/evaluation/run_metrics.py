"""Compute all metrics of an evaluation from a run and its labels. No files are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomaly.calibration.drift import DriftStatement, check_drift
from anomaly.calibration.operating_point import FPRCheck, check_fpr
from anomaly.core.errors import AlphaTooSmallError, InputError
from anomaly.core.progress import Progress, no_progress
from anomaly.evaluation.bootstrap import N_DRAWS, Estimate, bootstrap, bootstrap_mean
from anomaly.evaluation.compare import VOXEL_METRICS
from anomaly.evaluation.detection import METRICS
from anomaly.evaluation.labels import MatchedScans, Truth, match, read_labels
from anomaly.evaluation.localisation import ScanLocalisation, oracle_threshold, recall_by_size
from anomaly.evaluation.masks import localise_files
from anomaly.evaluation.subgroups import SubgroupFPR, subgroup_fprs
from anomaly.runs.reader import read_run_json
from anomaly.runs.score_tables import read_score_table

PER_SCAN_COLUMNS = (
    "scan_id",
    "subject",
    "session",
    "modality",
    "age",
    "sex",
    "status",
    "is_abnormal",
    "score",
    "p_value",
    "flagged",
    "flagged_ml",
)


@dataclass(frozen=True)
class EvaluationSettings:
    """Bootstrap settings, and the target FPRs that are checked in addition to that of the run."""

    n_draws: int = N_DRAWS
    seed: int = 0
    alphas: tuple[float, ...] = (0.05, 0.10)


@dataclass(frozen=True)
class Problem:
    """Why a scan is missing from some or all metrics."""

    scan_id: str
    code: str
    message: str


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of a run.

    Parameters
    ----------
    run
        Provenance: ``run.json``.
    per_scan
        One row per labelled scan: ``scan_id subject is_abnormal status score p_value flagged`` and, for lesions
        with a mask, ``voxel_average_precision dice oracle_dice_one_threshold oracle_dice_per_scan lesion_ml
        flagged_ml``.
    detection
        Score name → metric → estimate; the declared score first.
    fpr_checks
        Observed false-positive rate at each target alpha; empty without a calibration.
    subgroup_fprs
        The same by age band and by sex; empty if no age and no sex is known.
    localisation
        Metric → estimate over subjects.
    recall
        Size bin → (lesions found, all lesions).
    oracle_threshold
        The evidence threshold of ``oracle_dice_one_threshold``; nan without a lesion mask.
    drift
        Whether the healthy scans score like those of the calibration; None without a calibration.
    unlabelled, unscored
        Scans of the run without a label; labels without a scored scan.
    problems
        Scans that were left out, with the reason.
    """

    run: Mapping[str, Any]
    per_scan: pd.DataFrame
    detection: dict[str, dict[str, Estimate]]
    fpr_checks: tuple[FPRCheck, ...]
    subgroup_fprs: tuple[SubgroupFPR, ...]
    localisation: dict[str, Estimate]
    recall: dict[str, tuple[int, int]]
    oracle_threshold: float
    drift: DriftStatement | None
    unlabelled: tuple[str, ...]
    unscored: tuple[str, ...]
    problems: tuple[Problem, ...]
    settings: EvaluationSettings


def compute_metrics(
    run_dir: Path,
    labels_tsv: Path,
    masks_dir: Path | None = None,
    *,
    settings: EvaluationSettings | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Compare a run with the ground truth.

    Parameters and errors are those of :func:`pipelines.evaluate.evaluate`.
    """
    chosen = settings or EvaluationSettings()
    run = read_run_json(run_dir)
    matched = match(read_score_table(run_dir), read_labels(labels_tsv, masks_dir))
    has_flagged_masks = (run.get("calibration") or {}).get("voxel_threshold") is not None
    localised, problems = _localise_all(run_dir, matched, has_flagged_masks, progress)
    table, threshold = _with_localisation(matched.table, localised)
    checks = _fpr_checks(table, run, chosen.alphas)
    return Evaluation(
        run=run,
        per_scan=table,
        detection=_detection(table, str(run.get("score_name", "score")), chosen),
        fpr_checks=checks,
        subgroup_fprs=_subgroup_fprs(table, [check.alpha for check in checks]),
        localisation=_localisation(table, chosen, has_flagged_masks),
        recall=recall_by_size([lesion for found in localised.values() for lesion in found.lesions])
        if has_flagged_masks
        else {},
        oracle_threshold=threshold,
        drift=_drift(table, run),
        unlabelled=matched.unlabelled,
        unscored=matched.unscored,
        problems=tuple(problems),
        settings=chosen,
    )


def _localise_all(
    run_dir: Path, matched: MatchedScans, has_flagged_masks: bool, progress: Progress
) -> tuple[dict[str, ScanLocalisation], list[Problem]]:
    """Localise each scored lesion that has a mask, and list the scans for which this is not possible."""
    table, truths = matched.table, matched.truths
    scored = table[table["score"].notna()].to_dict("records")
    masked = [row for row in scored if truths[str(row["scan_id"])].mask is not None]
    localised: dict[str, ScanLocalisation] = {}
    problems = _without_mask(scored, truths) if masked else []
    for done, row in enumerate(masked):
        scan_id = str(row["scan_id"])
        progress(done, len(masked), f"localised {scan_id}")
        try:
            localised[scan_id] = localise_files(
                run_dir / str(row["map_path"]),
                truths[scan_id].mask or Path(),
                run_dir / str(row["mask_path"]) if has_flagged_masks else None,
            )
        except InputError as error:
            problems.append(Problem(scan_id, "no_localisation", str(error)))
    progress(len(masked), len(masked), "done")
    if masked and not localised:
        raise InputError(f"none of {len(masked)} lesion masks can be used; the last error: {problems[-1].message}")
    return localised, problems


def _without_mask(scored: list[dict[Any, Any]], truths: Mapping[str, Truth]) -> list[Problem]:
    return [
        Problem(str(row["scan_id"]), "no_mask", "labelled as a lesion, but no lesion mask is given")
        for row in scored
        if row["is_abnormal"] and truths[str(row["scan_id"])].mask is None
    ]


def _with_localisation(
    table: pd.DataFrame, localised: Mapping[str, ScanLocalisation]
) -> tuple[pd.DataFrame, float]:
    """Add the voxel-level metrics of each scan to the table; also return the oracle threshold."""
    threshold, index = (
        oracle_threshold([p.dice_curve for p in localised.values()]) if localised else (float("nan"), 0)
    )
    rows = {
        scan_id: {
            "voxel_average_precision": found.average_precision,
            "dice": np.nan if found.dice is None else found.dice,
            "oracle_dice_one_threshold": float(found.dice_curve[index]),
            "oracle_dice_per_scan": found.oracle_dice,
            "lesion_ml": found.lesion_ml,
        }
        for scan_id, found in localised.items()
    }
    extra = pd.DataFrame(
        list(rows.values()), index=list(rows), columns=[*VOXEL_METRICS, "lesion_ml"], dtype="float64"
    )
    extra = extra.reindex(table["scan_id"].astype(str)).reset_index(drop=True)
    columns = [c for c in table.columns if c in PER_SCAN_COLUMNS or str(c).startswith("score_")]
    return pd.concat([table[columns], extra], axis=1), threshold


def _detection(table: pd.DataFrame, declared: str, settings: EvaluationSettings) -> dict[str, dict[str, Estimate]]:
    """Estimate all scan-level metrics of the declared score and of all other scores."""
    scored = table[table["score"].notna()]
    names = [c for c in scored.columns if c.startswith("score_") and c != f"score_{declared}"]
    columns = {f"{declared} (declared)": "score", **{c.removeprefix("score_"): c for c in sorted(names)}}
    result = {}
    for name, column in columns.items():
        rows = scored[scored[column].notna()]
        values, is_abnormal = rows[column].to_numpy(dtype=np.float64), rows["is_abnormal"].to_numpy(dtype=bool)
        result[name] = {
            metric: bootstrap(
                lambda rows, f=function, v=values, i=is_abnormal: f(i[rows], v[rows]),  # type: ignore[misc]
                _subjects(scored.loc[rows.index]),
                is_abnormal,
                n_draws=settings.n_draws,
                seed=settings.seed,
            )
            for metric, function in METRICS.items()
        }
    return result


def _subjects(rows: pd.DataFrame) -> list[str]:
    return [str(subject) for subject in rows["subject"]]


def healthy_values(table: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return a column of the per-scan table for the healthy scans that have a value."""
    return table.loc[~table["is_abnormal"].astype(bool) & table[column].notna(), column].astype("float64")


def _fpr_checks(table: pd.DataFrame, run: Mapping[str, Any], alphas: Sequence[float]) -> tuple[FPRCheck, ...]:
    """Check the FPR at the alpha of the run, and at the other alphas that the number of reference scans allows."""
    calibration = run.get("calibration")
    p_values = healthy_values(table, "p_value")
    if not calibration or p_values.empty:
        return ()
    run_alpha = float(calibration["alpha"])
    checks = []
    for alpha in [run_alpha, *(a for a in alphas if not np.isclose(a, run_alpha))]:
        try:
            checks.append(check_fpr(int((p_values <= alpha).sum()), len(p_values), calibration["n_healthy"], alpha))
        except AlphaTooSmallError:
            continue
    return tuple(checks)


def _subgroup_fprs(table: pd.DataFrame, alphas: Sequence[float]) -> tuple[SubgroupFPR, ...]:
    healthy = table.loc[healthy_values(table, "p_value").index]
    sexes = healthy["sex"].fillna("").astype(str).tolist()
    return tuple(
        found for alpha in alphas for found in subgroup_fprs(healthy["p_value"], healthy["age"], sexes, alpha)
    )


def _drift(table: pd.DataFrame, run: Mapping[str, Any]) -> DriftStatement | None:
    calibration = run.get("calibration")
    reference = run.get("reference_scores", {}).get(run.get("score_name"), [])
    if not calibration or not reference:
        return None
    scores = healthy_values(table, "score").to_numpy()
    return check_drift(scores, reference, float(calibration["alpha"]), float(calibration["threshold"]))


def _localisation(
    table: pd.DataFrame, settings: EvaluationSettings, has_flagged_masks: bool
) -> dict[str, Estimate]:
    """Estimate each voxel metric over subjects with a lesion, and the flagged volume in healthy scans."""
    is_abnormal = table["is_abnormal"].astype(bool)
    metrics = {name: table.loc[is_abnormal, name] for name in VOXEL_METRICS}
    if has_flagged_masks:
        metrics["false_positive_ml_in_healthy"] = table.loc[~is_abnormal & table["score"].notna(), "flagged_ml"]
    return {
        name: bootstrap_mean(
            values.to_numpy(dtype=np.float64),
            _subjects(table.loc[values.index]),
            n_draws=settings.n_draws,
            seed=settings.seed,
        )
        for name, values in metrics.items()
        if values.notna().any()
    }
