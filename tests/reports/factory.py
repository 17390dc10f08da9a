"""A synthetic run folder: the MNI template with planted lesions, and scans in every status."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from scipy import ndimage

from anomaly.core.files import write_json
from anomaly.core.results import Region, ScanScore, ScanStatus

REFERENCE = np.random.default_rng(1).gamma(18, 0.11, 60).round(4)
THRESHOLD = float(np.sort(REFERENCE)[-3])  # with 60 healthy scans, p <= 0.05 leaves two of them above
VOXEL_THRESHOLD, EVIDENCE_MAX = 3.2, 8.0
HOSTILE = "sub-<img src=x onerror=alert(1)> & \"q\" 'i' #1?%41 {{7*7}}"


@lru_cache(maxsize=2)
def template(resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, mask = load_mni152_template(resolution=resolution), load_mni152_brain_mask(resolution=resolution)
    return np.asarray(image.get_fdata(), np.float32), np.asarray(mask.get_fdata()) > 0, np.asarray(image.affine)


def run_info(calibrated: bool = True) -> dict[str, Any]:
    reference = REFERENCE.tolist()
    return {
        "version": "0.1.0",
        "created_at": "2025-03-02T21:14:00+00:00",
        "model": {
            "model_id": "3f9c2a7d41b0",
            "name": "dae_t1",
            "family": "dae",
            "modality": "T1w",
            "intended_use": "Research on T1-weighted brain MRI of adults.",
            "trained_on": {"scans": 100, "subjects": 100, "age": [20, 81]},
        },
        "calibration": _calibration(len(reference)) if calibrated else None,
        "reference_scores": {"top_1_percent": reference, "largest_component": [r / 2 for r in reference]}
        if calibrated
        else {},
        "display": {"evidence_max": EVIDENCE_MAX, "voxel_threshold": VOXEL_THRESHOLD, "intensity_max": 1.05},
        "score_name": "top_1_percent",
        "software": {"anomaly": "0.1.0", "numpy": "2.2.0", "python": "3.11.9"},
        "command": "anomaly score model/ scans/ -o run/",
    }


def _calibration(n: int) -> dict[str, Any]:
    return {
        "calibration_id": "c0ffee01",
        "created_at": "2025-03-01T09:00:00+00:00",
        "who": "a.reader",
        "reason": "first calibration at our site",
        "alpha": 0.05,
        "n_healthy": n,
        "score_name": "top_1_percent",
        "threshold": THRESHOLD,
        "voxel_threshold": VOXEL_THRESHOLD,
        "expected_rate": 0.049,
        "interval_low": 0.01,
        "interval_high": 0.137,
    }


BLOBS = {
    "sub-01_T1w": [((-38.0, -22.0, 20.0), 14.0, 9.0, "dark")],
    "sub-02_T1w": [((30.0, 34.0, 12.0), 11.0, 7.0, "dark"), ((-24.0, -70.0, 4.0), 8.0, 5.5, "bright"),
                   ((46.0, -30.0, -12.0), 7.0, 5.0, "dark")],
    HOSTILE: [((2.0, 20.0, 44.0), 9.0, 6.0, "bright")],
}  # fmt: skip


def write_run(folder: Path, resolution: int = 4, calibrated: bool = True, healthy: int = 6) -> Path:
    """Write 3 scans with findings, ``healthy`` without, one refused and one failed, and a row without a folder."""
    write_json(folder / "run.json", run_info(calibrated))
    for index, (scan_id, blobs) in enumerate(BLOBS.items()):
        write_scan(folder, scan_id, blobs, 4.8 - index, resolution, calibrated)
    for index in range(healthy):
        write_scan(folder, f"sub-{index + 10:02d}_T1w", [], 1.4 + 0.22 * (index % 6), resolution, calibrated)
    refused = ScanScore("sub-91_T1w", ScanStatus.REFUSED, modality="T1w", source="scans/sub-91_T1w.nii.gz",
                        reason_code="field_of_view", reason="found 41 mm of head along K; expected at least 120 mm",
                        remedy="export the whole head")  # fmt: skip
    failed = ScanScore("sub-92_T1w", ScanStatus.FAILED, modality="T1w", source="scans/sub-92_T1w.nii.gz",
                       reason_code="error", reason="registration did not converge",
                       remedy="look at the scan; run again with --overwrite")  # fmt: skip
    for score in (refused, failed):
        write_json(folder / score.scan_id / "score.json", asdict(score))
    row = ["sub-93_CT", "refused", "CT", "scans/sub-93.zip", "wrong_modality",
           "found CT; expected T1w", "use a model for CT"]  # fmt: skip
    header = ["scan_id", "status", "modality", "source", "reason_code", "reason", "remedy"]
    (folder / "refused_failed.tsv").write_text("\t".join(header) + "\n" + "\t".join(row) + "\n", encoding="utf-8")
    return folder


def write_scan(
    folder: Path, scan_id: str, blobs: list[Any], score: float, resolution: int = 4, calibrated: bool = True
) -> None:
    volumes, regions = synthetic_volumes(blobs, resolution, seed=len(scan_id) + int(100 * score))
    place = folder / scan_id
    place.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(place / f"{scan_id}_space-template_volumes.npz", **volumes)
    write_json(place / "score.json", asdict(scan_score(scan_id, score, regions, calibrated)))


def scan_score(scan_id: str, score: float, regions: tuple[Region, ...] = (), calibrated: bool = True) -> ScanScore:
    p = float((1 + (score <= REFERENCE).sum()) / (REFERENCE.size + 1))
    percentile = float(100 * (score > REFERENCE).mean())
    names = {"top_1_percent": score, "largest_component": score / 2}
    return ScanScore(
        scan_id, ScanStatus.SCORED, subject=scan_id[:6], modality="T1w", source=f"scans/{scan_id}.nii.gz",
        content_hash="9b74c9897bac770ffc029102a200c5de" * 2, score=score,
        p_value=p if calibrated else None, percentile=percentile if calibrated else None,
        flagged=p <= 0.05 if calibrated else None, scores=names,
        p_values=dict.fromkeys(names, p) if calibrated else {},
        percentiles=dict.fromkeys(names, percentile) if calibrated else {}, regions=regions,
        warnings=("contrast-to-noise 1.2 is below the 1st percentile of the training scans (1.9): "
                  "the score may measure the scanner",) if score > 4 else (),
        numbers={"registration_overlap": 0.962, "brain_volume_ml": 1421.0, "seconds_preprocess": 3.21,
                 "seconds_score": 0.84}, model_id="3f9c2a7d41b0", calibration_id="c0ffee01" if calibrated else "",
        provenance={"preprocessing_hash": "a1b2c3d4", "chain": ["orient", "brain_mask", "register", "intensity"]},
    )  # fmt: skip


def synthetic_volumes(blobs: list[Any], resolution: int, seed: int) -> tuple[dict[str, Any], tuple[Region, ...]]:
    healthy, mask, affine = template(resolution)
    generator = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(generator.normal(size=healthy.shape), 8 / resolution)
    noise = np.abs(texture) / texture.std() * mask
    scan, evidence, regions = healthy * mask, noise.copy(), []
    for label, (centre, radius, peak, polarity) in enumerate(blobs, start=1):
        grid = np.moveaxis(np.indices(healthy.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        bump = np.exp(-0.5 * (np.linalg.norm(grid - centre, axis=-1) / (radius / 2)) ** 2) * mask
        scan = scan * (1 - (0.5 if polarity == "dark" else -0.4) * bump)
        evidence = np.maximum(evidence, peak * bump)
        inside = (peak * bump) >= VOXEL_THRESHOLD
        volume = float(inside.sum() * resolution**3 / 1000)
        voxel = np.round(np.linalg.inv(affine)[:3] @ [*centre, 1]).astype(int)
        regions.append(Region(label, volume, peak, float((peak * bump)[inside].mean()), centre,
                              (int(voxel[0]), int(voxel[1]), int(voxel[2])), polarity))  # fmt: skip
    scan = scan + 0.02 * generator.normal(size=scan.shape) * mask
    smooth = ndimage.gaussian_filter(healthy, 0.6) * mask
    names = {"input": scan, "reconstruction": smooth, "evidence": evidence}
    return {**{k: v.astype(np.float16) for k, v in names.items()}, "mask": mask, "affine": affine}, tuple(regions)
