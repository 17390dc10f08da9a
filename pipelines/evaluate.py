"""Compare a run with labels: detection, localisation and false-positive rate, with intervals over subjects.

Reads a run folder and a table of labels; writes ``evaluation/``::

    metrics.json       all numbers, machine-readable
    metrics.tsv        one row per estimate
    per_scan.parquet   one row per labelled scan (+ .tsv), for comparisons and other analyses
    results.md         tables for readers
    roc.png  precision_recall.png  calibration.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from anomaly.calibration.operating_point import FPRCheck, beta_binomial_band, clopper_pearson
from anomaly.core.aliases import PER_SCAN_TABLE
from anomaly.core.errors import DamagedFileError, InputError
from anomaly.core.files import atomic_path, write_json, write_text
from anomaly.core.progress import Progress, no_progress
from anomaly.core.tsv import write_table
from anomaly.evaluation.compare import VOXEL_METRICS
from anomaly.evaluation.detection import false_positive_rates
from anomaly.evaluation.figures import (
    CalibrationCurve,
    calibration_figure,
    precision_recall_figure,
    roc_figure,
    save,
)
from anomaly.evaluation.run_metrics import Evaluation, EvaluationSettings, compute_metrics, healthy_values
from anomaly.evaluation.subgroups import SubgroupFPR
from anomaly.evaluation.tables import as_json, markdown, number_table, text_table
from pipelines.common import audit


def evaluate(
    run_dir: Path,
    labels_tsv: Path,
    masks_dir: Path | None = None,
    output: Path | None = None,
    *,
    settings: EvaluationSettings | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Evaluate a run, write ``evaluation/`` and return a summary.

    Parameters
    ----------
    run_dir
        A run folder of ``anomaly score``.
    labels_tsv
        See :mod:`anomaly.evaluation.labels`.
    masks_dir
        Folder of lesion masks; by default the folder of the labels.
    output
        Output folder; by default ``run_dir/evaluation``.

    Returns
    -------
    dict
        Headline numbers, the path of ``report``, and under ``"metrics"`` the content of ``metrics.json``.

    Raises
    ------
    InputError
        The run or the labels are missing, no scan is in both, or none of the masks can be used.
    """
    found = compute_metrics(
        run_dir, labels_tsv, masks_dir, settings=settings or EvaluationSettings(), progress=progress
    )
    folder = output or run_dir / "evaluation"
    metrics = _metrics(found)
    written = [path.resolve() for path in _write(found, metrics, folder)]
    run = run_dir.resolve()
    files = [path for path in written if path.is_relative_to(run)]
    audit(run, "evaluate", files=files, labels=labels_tsv.name, output=str(folder.resolve()))
    return {**_headline(found), "report": str(folder / "results.md"), "metrics": metrics}


def read_per_scan(evaluation_dir: Path) -> pd.DataFrame:
    """Read the per-scan table of an evaluation; :func:`anomaly.evaluation.compare.compare` compares several."""
    path = evaluation_dir / "per_scan.parquet"
    if not path.is_file():
        raise InputError(f"no evaluation in {evaluation_dir}; make one with `anomaly evaluate`")
    try:
        return pd.read_parquet(path).rename(columns=PER_SCAN_TABLE)
    except (OSError, ValueError) as error:  # those of pyarrow are among them
        raise DamagedFileError(f"{path} is damaged ({error}); run the same `anomaly evaluate` again") from error


def _write(found: Evaluation, metrics: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write all files of an evaluation and return their paths."""
    tables = {"metrics.tsv": number_table({**found.detection, "localisation": found.localisation})}
    tables["per_scan.tsv"] = found.per_scan
    write_json(folder / "metrics.json", metrics)
    for name, table in tables.items():
        _write_table(table, folder / name)
    with atomic_path(folder / "per_scan.parquet") as temporary:
        found.per_scan.to_parquet(temporary, index=False)
    write_text(folder / "results.md", _markdown(found))
    texts = [folder / name for name in ("metrics.json", *tables, "per_scan.parquet", "results.md")]
    return [*texts, *_write_figures(found, folder)]


def _write_table(table: pd.DataFrame, path: Path) -> None:
    write_table(table, path, na_rep="n/a", float_format="%.6g")


def _metrics(found: Evaluation) -> dict[str, Any]:
    model, calibration = found.run.get("model") or {}, found.run.get("calibration") or {}
    values: dict[str, Any] = as_json(
        {
            "run": {
                **{key: model.get(key) for key in ("model_id", "name", "family")},
                **{key: calibration.get(key) for key in ("calibration_id", "alpha", "n_healthy", "threshold")},
                "score_name": found.run.get("score_name"),
            },
            "scans": {**_counts(found), "unlabelled": found.unlabelled, "unscored": found.unscored},
            "detection": {s: {m: asdict(e) for m, e in es.items()} for s, es in found.detection.items()},
            "fpr_checks": [
                {**asdict(c), "within_target": c.within_target, "inside_plain_band": c.inside_plain_band}
                for c in found.fpr_checks
            ],
            "subgroup_fprs": [asdict(subgroup) for subgroup in found.subgroup_fprs],
            "localisation": {metric: asdict(e) for metric, e in found.localisation.items()},
            "lesion_recall": {size: {"found": k, "all": n} for size, (k, n) in found.recall.items()},
            "oracle_threshold": found.oracle_threshold,
            "drift": asdict(found.drift) if found.drift else None,
            "problems": [asdict(problem) for problem in found.problems],
            "settings": asdict(found.settings),
        }
    )
    return values


def _counts(found: Evaluation) -> dict[str, int]:
    scored = found.per_scan[found.per_scan["score"].notna()]
    n_abnormal = int(scored["is_abnormal"].sum())
    n_masks = int(scored["voxel_average_precision"].notna().sum())
    return {
        "healthy_scans": len(scored) - n_abnormal,
        "lesion_scans": n_abnormal,
        "lesion_masks_used": n_masks,
        "subjects": scored["subject"].nunique(),
    }


def _headline(found: Evaluation) -> dict[str, Any]:
    detection = next(iter(found.detection.values()))
    check = found.fpr_checks[0] if found.fpr_checks else None
    headline = {
        **_counts(found),
        "auroc": detection["auroc"].value,
        **{name: found.localisation[name].value for name in VOXEL_METRICS if name in found.localisation},
        "false_positive_rate": check.rate if check else None,
        "target_false_positive_rate": check.alpha if check else None,
        "target": ("within" if check.within_target else "exceeded") if check else None,
        "problems": len(found.problems),
    }
    values: dict[str, Any] = as_json(headline)
    return values


def _markdown(found: Evaluation) -> str:
    """Format the tables for readers; all intervals are 95 %."""
    counts, settings = _counts(found), found.settings
    parts = [
        "# Evaluation\n",
        f"{counts['healthy_scans']} healthy and {counts['lesion_scans']} lesion scans of {counts['subjects']} "
        f"subjects. In brackets: 95 % percentile intervals of {settings.n_draws} bootstrap draws over subjects "
        f"(seed {settings.seed}). Research use only.\n",
        "## Scans\n\n" + markdown(text_table(found.detection, "score")),
    ]
    if found.fpr_checks:
        parts.append("## False-positive rate on healthy scans\n\n" + markdown(_fpr_table(found.fpr_checks)))
    if found.subgroup_fprs:
        parts.append("### By age and sex\n\n" + markdown(_subgroup_table(found.subgroup_fprs)))
    if found.drift:
        parts.append(found.drift.message + "\n")
    if found.localisation:
        parts.append("## Voxels\n\n" + markdown(text_table({"run": found.localisation}, "")))
        parts.append('"Oracle" metrics use thresholds chosen with the lesion masks; `dice` does not.\n')
    if any(n for _, n in found.recall.values()):
        parts.append("## Lesions found, by size\n\n" + markdown(_recall_table(found.recall)))
    if found.problems:
        parts.append("## Left out\n\n" + markdown(pd.DataFrame([asdict(p) for p in found.problems])))
    return "\n".join(parts)


def _fpr_table(fpr_checks: Sequence[FPRCheck]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "target FPR": [f"{check.alpha:g}" for check in fpr_checks],
            "flagged": [f"{check.n_flagged} of {check.n_test}" for check in fpr_checks],
            "observed FPR (95 % Clopper-Pearson)": [
                f"{check.rate:.3f} ({check.interval.low:.3f} to {check.interval.high:.3f})" for check in fpr_checks
            ],
            "99 % beta-binomial band": [f"{check.band.low:g} to {check.band.high:g}" for check in fpr_checks],
            "99 % binomial band": [
                f"{check.plain_band.low:g} to {check.plain_band.high:g}" for check in fpr_checks
            ],
            "target": ["within" if check.within_target else "exceeded" for check in fpr_checks],
        }
    )


def _subgroup_table(subgroups: Sequence[SubgroupFPR]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "healthy subjects": [found.group for found in subgroups],
            "target FPR": [f"{found.alpha:g}" for found in subgroups],
            "flagged": [f"{found.n_flagged} of {found.n_test}" for found in subgroups],
            "observed FPR (95 % Clopper-Pearson)": [
                f"too few scans ({found.interval.low:.3f} to {found.interval.high:.3f})"
                if found.too_few
                else f"{found.rate:.3f} ({found.interval.low:.3f} to {found.interval.high:.3f})"
                for found in subgroups
            ],
        }
    )


def _recall_table(recall: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    rows = []
    for size, (k, n) in recall.items():
        interval = clopper_pearson(k, n) if n else None
        rate = f"{k / n:.2f} ({interval.low:.2f} to {interval.high:.2f})" if interval else "–"
        rows.append({"size": size, "found": f"{k} of {n}", "recall (95 % Clopper-Pearson)": rate})
    return pd.DataFrame(rows)


def _write_figures(found: Evaluation, folder: Path) -> list[Path]:
    scored = found.per_scan[found.per_scan["score"].notna()]
    figures: dict[str, Figure] = {}
    if scored["is_abnormal"].nunique() == 2:
        curves = {next(iter(found.detection)): (scored["is_abnormal"].to_numpy(), scored["score"].to_numpy())}
        figures |= {"roc.png": roc_figure(curves), "precision_recall.png": precision_recall_figure(curves)}
    if found.fpr_checks:
        figures["calibration.png"] = calibration_figure(_calibration_curve(found))
    for name, figure in figures.items():
        save(figure, folder / name)
    return [folder / name for name in figures]


def _calibration_curve(found: Evaluation) -> CalibrationCurve:
    """Return the observed FPR at every target up to 0.5 that the number of reference scans allows."""
    p_values, n = healthy_values(found.per_scan, "p_value"), found.fpr_checks[0].n_healthy
    alphas = np.arange(1, (n + 1) // 2 + 1) / (n + 1)
    bands = [beta_binomial_band(len(p_values), n, float(alpha)) for alpha in alphas]
    return CalibrationCurve(
        alphas=alphas,
        rates=false_positive_rates(p_values, alphas),
        band_low=np.array([band.low for band in bands]) / len(p_values),
        band_high=np.array([band.high for band in bands]) / len(p_values),
        target=found.fpr_checks[0].alpha,
    )
