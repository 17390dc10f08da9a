"""Plant synthetic lesions in the raw test scans of a benchmark, before any preprocessing.

::

    planted/raw/<subject>/<scan>_acq-planted<kind>_run-<n>_<modality>.nii.gz, …_desc-lesion_mask.nii.gz
    planted/raw/manifest.csv                            planted/labels-<kind>.tsv
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from anomaly.cohort.lesion_shapes import lesion_shapes
from anomaly.cohort.planted_lesions import (
    LESION_KINDS,
    LESION_ML,
    MR_LESION_KINDS,
    LesionKind,
    draw_lesion,
    draw_strength,
    plant_in_scan,
)
from anomaly.cohort.table import ScanRecord, read_records
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.config import Settings
from anomaly.core.errors import CohortError, ConfigError
from anomaly.core.progress import Progress
from anomaly.core.tsv import write_table
from anomaly.core.volume import Geometry, MaskArray, Modality
from anomaly.export.nifti import write_nifti
from anomaly.io.nifti import read_nifti
from anomaly.preprocessing.grid import resample_mask

MIN_LESION_ML = 0.2  # of the part inside the brain
MAX_SHAPE_DRAWS = 100


class PlantedSettings(Settings):
    """Synthetic lesions: ``per_subject`` copies of every test scan for each kind, one lesion in each copy."""

    kinds: tuple[LesionKind, ...] = Field(
        default=MR_LESION_KINDS,
        description="kinds of lesions: dark, bright, texture, mass_effect, multifocal, tumour; "
        "in CT also haemorrhage, subdural",
    )
    per_subject: int = Field(default=1, ge=1, description="copies of each test scan for each kind")
    shapes: Path | None = Field(
        default=None,
        description="folder of lesion masks in MNI space, relative to --data, for the kinds dark, bright, texture "
        "and mass_effect; null = random blobs",
    )
    volume_ml: tuple[float, float] = Field(
        default=(1.0, 30.0),
        description="range of the volumes of random blobs, millilitres; kinds with a shape of their own have their "
        "own range",
    )
    seed: int = Field(default=0, description="seed of the lesions")


@dataclass(frozen=True)
class _PlantedCopy:
    """A copy of a test scan to be written: its kind of lesion, its seed and its files."""

    record: ScanRecord
    kind: LesionKind
    number: int
    seed: tuple[int, ...]

    @property
    def scan_id(self) -> str:
        name = self.record.scan_id.removesuffix(f"_{self.record.modality}")
        return f"{name}_acq-planted{self.kind.replace('_', '')}_run-{self.number}_{self.record.modality}"

    @property
    def scan(self) -> Path:
        return Path(self.record.subject) / f"{self.scan_id}.nii.gz"

    @property
    def mask(self) -> Path:
        return Path(self.record.subject) / f"{self.scan_id}_desc-lesion_mask.nii.gz"


def plant_test_scans(
    settings: PlantedSettings, shapes: Path | None, cohort: Path, output: Path, progress: Progress
) -> Path:
    """Write copies of the test scans with lesions and the labels of each kind; return the manifest of the copies.

    Existing files are kept. The same seed plants the same lesions; a larger number of copies does not change the
    first ones.

    Parameters
    ----------
    shapes
        Folder of lesion masks in MNI space; None = random blobs.
    output
        Folder for ``raw/`` and ``labels-<kind>.tsv``.

    Raises
    ------
    CohortError
        The cohort has no healthy test scan, or one of them is not a NIfTI file.
    """
    test = healthy_test_scans(cohort)
    raw, volumes = output / "raw", CohortVolumes(cohort, test)
    masks = None if shapes is None else lesion_shapes(shapes, volumes.grid)
    copies = list(_copies(settings, test))
    for done, copy in enumerate(copies):
        progress(done, len(copies), "planting lesions")
        if not (raw / copy.mask).is_file():
            _plant(copy, cohort, raw, masks, volumes.grid, settings)
    for kind in settings.kinds:
        rows = [label_row(record.scan_id, 0) for record in test]
        rows += [label_row(c.scan_id, 1, str(Path("raw") / c.mask)) for c in copies if c.kind == kind]
        write_labels(output / f"labels-{kind}.tsv", rows)
    return _write_manifest(raw / "manifest.csv", copies)


def healthy_test_scans(cohort: Path) -> list[ScanRecord]:
    """Return the healthy test scans of a cohort: lesions are planted in them, and unchanged they are negatives."""
    test = [r for r in read_records(cohort) if r.split == "test" and r.group in {"", "healthy"}]
    if not test:
        raise CohortError(
            f"{cohort} has no healthy test scan to plant lesions in; give the test split a larger share"
        )
    return test


def label_row(scan_id: str, label: int, mask: str = "") -> dict[str, Any]:
    """Return one row of a table of labels."""
    return {"scan_id": scan_id, "label": label, "mask": mask}


def write_labels(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table of labels, as ``anomaly evaluate`` reads it."""
    write_table(pd.DataFrame(rows), path)


def _copies(settings: PlantedSettings, test: Sequence[ScanRecord]) -> Iterator[_PlantedCopy]:
    for kind in settings.kinds:
        for index, record in enumerate(test):
            for number in range(1, settings.per_subject + 1):
                yield _PlantedCopy(record, kind, number, (settings.seed, LESION_KINDS.index(kind), index, number))


def _plant(
    copy: _PlantedCopy,
    cohort: Path,
    raw: Path,
    shapes: Sequence[MaskArray] | None,
    grid: Geometry,
    settings: PlantedSettings,
) -> None:
    """Write a raw scan with one lesion, then its mask; an existing mask means that both are complete."""
    record, rng = copy.record, np.random.default_rng(copy.seed)
    if "#" in record.source:
        raise CohortError(
            f"{record.scan_id} is a DICOM series; lesions are planted in NIfTI files only; convert it, e.g. with "
            "dcm2niix"
        )
    scan = read_nifti((cohort / record.source).resolve(), modality=Modality(record.modality))
    brain, matrix = CohortVolumes(cohort, [record])[0][1], record.template_from_scan_matrix
    lesion = choose_lesion(copy.kind, brain, shapes, grid, settings, rng)
    strength = draw_strength(copy.kind, rng)
    foreground = None
    if scan.modality.is_ct or not record.numbers.get("was_extracted"):
        foreground = resample_mask(brain, grid, scan.geometry, matrix, antialias=False)
    planted, mask = plant_in_scan(scan, matrix, lesion, grid, copy.kind, strength, rng, brain=foreground)
    write_nifti(raw / copy.scan, planted.voxels, scan.geometry)
    write_nifti(raw / copy.mask, mask, scan.geometry, "uint8")


def choose_lesion(
    kind: LesionKind,
    brain: MaskArray,
    shapes: Sequence[MaskArray] | None,
    grid: Geometry,
    settings: PlantedSettings,
    rng: np.random.Generator,
) -> MaskArray:
    """Return a lesion of a shape of its kind, or a real shape inside the brain, mirrored with probability 1/2."""
    if shapes is None or kind in LESION_ML:
        return draw_lesion(kind, brain, grid, settings.volume_ml, rng)
    for _ in range(MAX_SHAPE_DRAWS):
        shape = shapes[int(rng.integers(len(shapes)))]
        shape = shape[::-1] if rng.random() < 0.5 else shape
        inside = (shape & brain).sum()
        if inside * grid.voxel_ml >= MIN_LESION_ML and inside >= 0.5 * shape.sum():
            return shape
    raise ConfigError(
        f"none of {MAX_SHAPE_DRAWS} lesion shapes lies in the brain; check that the shapes are masks in MNI space"
    )


def _write_manifest(path: Path, copies: Sequence[_PlantedCopy]) -> Path:
    """Write the manifest with the subject of every copy, so that the copies of a subject stay together."""
    rows = [
        {
            "path": str(copy.scan),
            "subject": copy.record.subject,
            "session": copy.record.session,
            "age": copy.record.age,
            "sex": copy.record.sex,
            "modality": copy.record.modality,
            "group": "planted",
            "split": "test",
        }
        for copy in copies
    ]
    write_table(pd.DataFrame(rows), path)
    return path
