"""Small ingested cohorts written directly, as `anomaly ingest` leaves them, so that nothing is registered."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from scipy import ndimage

from anomaly.cohort.table import ScanRecord, read_records, write_manifest
from anomaly.core.files import sha256_of_voxels, write_json
from anomaly.core.results import ScanStatus
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.export.nifti import write_nifti
from anomaly.preprocessing.chain import ChainSettings

GRID = Geometry((16, 18, 14), np.diag([8.0, 8.0, 8.0, 1.0]))
OBLIQUE = np.array([[0.0, -7.9, 1.0, 130.0], [8.0, 0.0, 0.0, -3.0], [0.0, 1.0, 7.9, -2.0], [0.0, 0.0, 0.0, 1.0]])
SCAN = Geometry((19, 17, 15), OBLIQUE)


def healthy(seed: int) -> tuple[FloatArray, MaskArray]:
    """Return a healthy scan on the template grid: shared anatomy, and smooth variation of its own."""
    centred = np.meshgrid(*[np.linspace(-1, 1, n) for n in GRID.shape], indexing="ij")
    mask = np.asarray(sum(axis**2 for axis in centred) < 0.8)
    anatomy = 0.7 + 0.15 * np.sin(4 * centred[0]) * np.cos(3 * centred[1])
    own = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=GRID.shape), 1.0)
    return np.where(mask, anatomy + 0.1 * own, 0).astype(np.float32), mask


def with_lesion(voxels: FloatArray) -> FloatArray:
    """Return the scan with a dark lesion in the middle."""
    abnormal = voxels.copy()
    abnormal[6:10, 7:11, 5:9] *= 0.4
    return abnormal


def make_cohort(folder: Path, subjects: Sequence[int], *, lesion: bool = False, split: str = "") -> Path:
    """Write a finished cohort with one scan per subject number."""
    records = [_write(folder, number, lesion, split) for number in subjects]
    write_manifest(folder, records)
    write_json(
        folder / "cohort.json",
        {"complete": True, "chain": ChainSettings().model_dump(mode="json"), "modality": "T1w"},
    )
    return folder


def write_sources(folder: Path) -> list[Path]:
    """Write the scans as received, which are the prepared ones; return their paths."""
    records = read_records(folder)
    paths = [(folder / record.source).resolve() for record in records]
    for number, path in enumerate(paths):
        write_nifti(path, healthy(number)[0], GRID)
    return paths


def make_brighter_cohort(folder: Path, subjects: Sequence[int], by: float = 0.15) -> Path:
    """Write a finished cohort of another scanner, whose images are brighter at the front."""
    make_cohort(folder, subjects)
    ramp = np.linspace(0.0, by, GRID.shape[1])[None, :, None]
    for record, subject in zip(read_records(folder), subjects, strict=True):
        voxels, mask = healthy(subject)
        write_nifti(folder / record.volume, np.where(mask, voxels + ramp, 0).astype(np.float32), GRID)
    return folder


def add_refused(folder: Path, cohort_records: Sequence[ScanRecord]) -> None:
    """Add a scan that ingest refused to a cohort."""
    refused = ScanRecord(
        scan_id="sub-bad_T1w", status=ScanStatus.REFUSED, subject="sub-bad", modality="T1w", reason_code="not_3d",
        reason="found 4 axes; expected 3", remedy="give single volumes", content_hash="",
    )  # fmt: skip
    write_manifest(folder, [*cohort_records, refused])


def add_warning(folder: Path, warning: str) -> None:
    """Add a warning of the quality checks to every scan of a cohort."""
    write_manifest(folder, [replace(record, warnings=(warning,)) for record in read_records(folder)])


def write_config(path: Path, family: str = "atlas", **model: object) -> Path:
    """Write a model config for the cohorts made here."""
    config = {
        "name": family,
        "preprocessing": ChainSettings().model_dump(mode="json"),
        "model": {"family": family, "view": {"kind": "volume"}, **model},
        "scoring": {"smoothing_mm": 4.0, "sd_smoothing_mm": 8.0, "min_region_ml": 0.0},
        "validation_fraction": 0.2,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def _write(folder: Path, number: int, lesion: bool, split: str) -> ScanRecord:
    voxels, mask = healthy(number)
    voxels = with_lesion(voxels) if lesion else voxels
    scan_id = f"sub-{number:03d}{'_acq-lesion' if lesion else ''}_T1w"
    volume, foreground = f"volumes/{scan_id}.nii", f"masks/{scan_id}.nii"
    write_nifti(folder / volume, voxels, GRID)
    write_nifti(folder / foreground, mask, GRID, "uint8")
    return ScanRecord(
        scan_id=scan_id, status=ScanStatus.ACCEPTED, subject=f"sub-{number:03d}", modality="T1w", group="healthy",
        split=split, age=40.0 + number, source=f"raw/{hashlib.md5(scan_id.encode()).hexdigest()}.nii.gz",  # noqa: S324
        content_hash=sha256_of_voxels(voxels, GRID.affine), volume=volume, mask=foreground, shape=SCAN.shape,
        affine=tuple(SCAN.affine.ravel()), template_from_scan=tuple(np.eye(4).ravel()),
        numbers={"brain_volume_ml": 1.0},
    )  # fmt: skip
