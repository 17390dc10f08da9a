"""A small ingested cohort of synthetic head CTs at 4 mm, written directly, so that nothing is registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from anomaly.cohort.table import ScanRecord, write_manifest
from anomaly.core.files import sha256_of_voxels, write_json
from anomaly.core.results import ScanStatus
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.export.nifti import write_nifti
from anomaly.preprocessing.intensity import normalise
from anomaly.preprocessing.template import template_on
from pipelines.ingest import load_chain

CHAIN = load_chain("ct-4mm")
TEMPLATE = template_on(CHAIN.grid.spacing_mm)
WHITE_HU, GREY_HU, CSF_HU, BLOOD_HU, OEDEMA_HU = 30.0, 38.0, 6.0, 68.0, 18.0
BLEED = (slice(30, 35), slice(22, 27), slice(22, 27))
INFARCT = (slice(12, 19), slice(20, 28), slice(22, 29))


def head_ct(
    number: int, lesion: tuple[slice, slice, slice] | None = None, lesion_hu: float = BLOOD_HU
) -> FloatArray:
    """Return the brain of a subject in the window of the chain: shared anatomy, own contrast, CSF and noise."""
    rng = np.random.default_rng(number)
    csf = np.clip(TEMPLATE.csf * rng.uniform(0.7, 1.3), 0, 1)
    tissue = (WHITE_HU + rng.normal(0, 1)) * TEMPLATE.white + (GREY_HU + rng.normal(0, 1)) * TEMPLATE.grey
    hounsfield = (1 - csf) * tissue / np.maximum(TEMPLATE.white + TEMPLATE.grey, 0.1) + csf * CSF_HU
    hounsfield += ndimage.gaussian_filter(rng.normal(0, 4, hounsfield.shape), 0.7)
    if lesion is not None:
        hounsfield[lesion] = lesion_hu
    return normalise(hounsfield.astype(np.float32), mask(), TEMPLATE, CHAIN.intensity)


def mask() -> MaskArray:
    """Return the brain mask of every subject."""
    return TEMPLATE.mask


def make_ct_cohort(folder: Path, n_train: int = 16) -> Path:
    """Write healthy scans to train on, and to test one scan without lesion, with a bleed and with an infarct."""
    records = [_write(folder, f"sub-{n:02d}", head_ct(n), "train") for n in range(n_train)]
    records += [
        _write(folder, "sub-healthy", head_ct(90), "test"),
        _write(folder, "sub-bleed", head_ct(90, BLEED), "test"),
        _write(folder, "sub-infarct", head_ct(90, INFARCT, OEDEMA_HU), "test"),
    ]
    write_manifest(folder, records)
    chain = CHAIN.model_dump(mode="json")
    write_json(folder / "cohort.json", {"complete": True, "chain": chain, "modality": "CT"})
    return folder


def _write(folder: Path, subject: str, voxels: FloatArray, split: str) -> ScanRecord:
    name, grid = f"{subject}_ct", TEMPLATE.geometry
    write_nifti(folder / "volumes" / f"{name}.nii", voxels, grid, "float32")
    write_nifti(folder / "masks" / f"{name}.nii", mask(), grid, "uint8")
    return ScanRecord(
        scan_id=name,
        status=ScanStatus.ACCEPTED,
        subject=subject,
        modality="CT",
        group="healthy" if split == "train" else "",
        split=split,
        content_hash=sha256_of_voxels(voxels, grid.affine),
        volume=f"volumes/{name}.nii",
        mask=f"masks/{name}.nii",
        shape=grid.shape,
        affine=tuple(float(v) for v in grid.affine.ravel()),
        template_from_scan=tuple(float(v) for v in np.eye(4).ravel()),
    )
