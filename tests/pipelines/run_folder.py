"""A small run folder with known results, as `anomaly score` leaves it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from anomaly.calibration.conformal import p_values
from anomaly.calibration.operating_point import operating_point
from anomaly.core.files import write_json

SHAPE = (10, 11, 12)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
REFERENCE = np.linspace(1, 2, 39)


def make_run(
    folder: Path, *, n_healthy: int = 12, n_abnormal: int = 8, calibrated: bool = True, seed: int = 0
) -> Path:
    """Write ``folder/run`` and ``folder/labels.tsv`` (masks in ``folder/masks``); return the run folder.

    Subject i is abnormal if i ≥ ``n_healthy``; abnormal scans score about 1 higher. The last scan is refused.
    """
    (folder / "run").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    abnormal = np.arange(n_healthy + n_abnormal) >= n_healthy
    scores = 1 + rng.random(abnormal.size) + abnormal * 0.9
    point = operating_point(REFERENCE, 0.05)
    rows, labels = [], []
    for i, (sick, score) in enumerate(zip(abnormal, scores, strict=True)):
        scan = f"sub-{i:02d}_T1w"
        mask = _write_maps(folder, scan, rng) if sick else ""
        labels.append((scan, int(sick), mask))
        rows.append(_row(scan, float(score), point.threshold, calibrated))
    rows.append({**_row("sub-99_T1w", np.nan, point.threshold, False), "status": "refused", "score": None})
    labels.append(("sub-99_T1w", 1, ""))
    pd.DataFrame(rows).astype({"flagged": "boolean"}).to_parquet(folder / "run" / "scores.parquet", index=False)
    table = pd.DataFrame(labels, columns=["scan_id", "label", "mask"])
    table.to_csv(folder / "labels.tsv", sep="\t", index=False)
    write_json(folder / "run" / "run.json", _run_json(point.threshold if calibrated else None))
    return folder / "run"


def save_image(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)


def _row(scan: str, score: float, threshold: float, calibrated: bool) -> dict[str, object]:
    return {
        "scan_id": scan,
        "subject": scan.split("_")[0],
        "status": "scored",
        "score": score,
        "score_reconstruction": score,
        "score_kl": -score,
        "p_value": float(p_values(score, REFERENCE)) if calibrated else None,
        "flagged": bool(score > threshold) if calibrated else None,
        "flagged_ml": 0.5 if calibrated else 0.0,
        "map_path": f"{scan}/{scan}_desc-anomaly_map.nii.gz",
        "mask_path": f"{scan}/{scan}_desc-flagged_mask.nii.gz",
    }


def _write_maps(folder: Path, scan: str, rng: np.random.Generator) -> str:
    """Write a map in which a lesion of 27 voxels stands out, and a flagged mask that holds 18 of them."""
    lesion = np.zeros(SHAPE)
    lesion[3:6, 3:6, 3:6] = 1
    evidence = np.zeros(SHAPE)
    evidence[1:-1, 1:-1, 1:-1] = 0.1 + rng.random((8, 9, 10))
    flagged = lesion.copy()
    flagged[5] = 0
    save_image(folder / "run" / scan / f"{scan}_desc-anomaly_map.nii.gz", evidence + 2 * lesion)
    save_image(folder / "run" / scan / f"{scan}_desc-flagged_mask.nii.gz", flagged)
    save_image(folder / "masks" / f"{scan}_mask.nii.gz", lesion)
    return f"masks/{scan}_mask.nii.gz"


def _run_json(threshold: float | None) -> dict[str, object]:
    calibration = {
        "calibration_id": "cal-1",
        "alpha": 0.05,
        "n_healthy": len(REFERENCE),
        "threshold": threshold,
        "voxel_threshold": 1.5,
    }
    return {
        "model": {"model_id": "abc", "name": "toy", "family": "atlas"},
        "calibration": None if threshold is None else calibration,
        "reference_scores": {} if threshold is None else {"reconstruction": REFERENCE.tolist()},
        "score_name": "reconstruction",
    }
