"""Several models, one cohort, one protocol, one table.

The healthy scans are split by subject (train, calibration, test); synthetic lesions are planted in the *raw* test
scans, which then go through everything a scan goes through; every model is trained, calibrated and run on the
same scans; differences are paired over subjects. Real cases, where there are any, are a sanity check beside it.

::

    output/cohort/              the healthy scans, prepared once
    output/planted/<kind>/      test scans with a synthetic lesion, masks; output/planted/cohort/ prepared
    output/models/<name>/       bundles     output/runs/<name>/   runs     output/evaluation/<name>/<kind>/
    output/results.md + .json   the tables
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from anomaly.cohort.splits import split_by_subject
from anomaly.cohort.synthetic import KINDS, Kind, draw_strength, lesion_shapes, plant_in_scan, random_blob
from anomaly.cohort.table import ScanRecord, read_records, write_manifest
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.config import Settings, load_yaml
from anomaly.core.errors import CohortError, ConfigError
from anomaly.core.files import atomic_path, read_json
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Geometry, MaskArray
from anomaly.io.nifti import read_nifti, write_nifti
from pipelines.benchmark_table import Results, write_results
from pipelines.calibrate import calibrate
from pipelines.common import Progress, find_config, no_progress
from pipelines.evaluate import evaluate, read_per_scan
from pipelines.ingest import ingest
from pipelines.score import ScoreRequest, score
from pipelines.train import train

SPLITS = ("train", "calibration", "test")
LEAST_LESION_ML = 0.2


class SplitSettings(Settings):
    """How many subjects go where; the rest is left out. Subjects the manifest has split already stay there."""

    train: float = Field(default=0.655, gt=0, lt=1, description="share of the subjects")
    calibration: float = Field(default=0.155, gt=0, lt=1)
    test: float = Field(default=0.19, gt=0, lt=1)
    seed: int = 0


class PlantedSettings(Settings):
    """Synthetic lesions planted in the raw test scans, one in each, per kind."""

    kinds: tuple[Kind, ...] = Field(default=KINDS, description="dark, bright, texture, mass_effect")
    shapes: Path | None = Field(
        default=None, description="folder of lesion masks in MNI space; none = random blobs"
    )
    volume_ml: tuple[float, float] = Field(default=(1.0, 30.0), description="range of random blobs")
    seed: int = 0


class BenchmarkSettings(Settings):
    """A benchmark: data, split, models, lesions."""

    name: str
    healthy: Path = Field(description="healthy scans, relative to --data")
    preprocessing: str = Field(description="the chain all models share")
    models: tuple[str, ...] = Field(min_length=1, description="model configs; the first is the one to be compared")
    baselines: tuple[str, ...] = Field(default=(), description="which of the models are baselines")
    split: SplitSettings = SplitSettings()
    planted: PlantedSettings = PlantedSettings()
    cases: Path | None = Field(default=None, description="real cases with masks, relative to --data")
    alphas: tuple[float, ...] = (0.05, 0.10)


def benchmark(
    config: str | Path,
    output: Path,
    *,
    data: Path | None = None,
    jobs: int = 0,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Path:
    """Run a benchmark, or continue one, and return the path of its table.

    Parameters
    ----------
    config
        A shipped name, or the path of a YAML file.
    data
        The folder that paths in the config are relative to; by default the config's own folder.
    """
    path = find_config(config, "benchmarks")
    settings = BenchmarkSettings.parse(load_yaml(path), where=str(path))
    root = data or path.parent
    cohort = _healthy_cohort(settings, root, output, jobs, progress)
    planted = _planted_cohort(settings, root, output, cohort, jobs, progress)
    cases = _case_cohort(settings, root, output, jobs, progress)
    results = Results(settings.name, settings.models, settings.baselines, _measured_on(cohort, settings))
    for name in settings.models:
        model = _model(name, settings, cohort, output, jobs, device, progress)
        run = output / "runs" / name
        sources = tuple(path for path in (cohort, planted, cases) if path is not None)
        request = ScoreRequest(
            model=model,
            sources=sources,
            output=run,
            split="test",
            alpha=min(settings.alphas),
            jobs=jobs,
            device=device,
        )
        score(request, progress)
        results.add_model(name, read_json(model / "metadata.json"))
        for kind in (*settings.planted.kinds, *(("cases",) if cases else ())):
            labels = output / "planted" / f"labels-{kind}.tsv"
            folder = output / "evaluation" / name / kind
            found = evaluate(run, labels, output=folder)
            results.add(name, kind, read_per_scan(folder), found["metrics"]["promises"])
    return write_results(results, output)


def _healthy_cohort(settings: BenchmarkSettings, root: Path, output: Path, jobs: int, progress: Progress) -> Path:
    """Ingest the healthy scans and write the split into the manifest, so that every step sees the same."""
    cohort = output / "cohort"
    ingest([root / settings.healthy], cohort, preprocessing=settings.preprocessing, jobs=jobs, progress=progress)
    records = read_records(cohort)
    accepted = [record for record in records if record.status is ScanStatus.ACCEPTED]
    shares = {name: getattr(settings.split, name) for name in SPLITS}
    parts = split_by_subject(accepted, shares, seed=settings.split.seed)
    split_of = {record.scan_id: name for name in SPLITS for record in parts[name]}
    write_manifest(cohort, [replace(r, split=split_of.get(r.scan_id, "unused")) for r in records])
    return cohort


def _planted_cohort(
    settings: BenchmarkSettings, root: Path, output: Path, cohort: Path, jobs: int, progress: Progress
) -> Path:
    """Plant lesions in the raw test scans, write them as NIfTI, and ingest them like any other scan."""
    raw = output / "planted" / "raw"
    test = [r for r in read_records(cohort) if r.split == "test" and r.group in {"", "healthy"}]
    if not test:
        raise CohortError(
            f"{cohort} has no healthy test scan to plant lesions in; give the test split a larger share"
        )
    grid = CohortVolumes(cohort, test).grid
    shapes = _shapes(settings, root, grid)
    for kind in settings.planted.kinds:
        rows = [{"scan_id": record.scan_id, "label": 0, "mask": ""} for record in test]
        for index, record in enumerate(test):
            progress(index, len(test), f"planting {kind} lesions")
            scan_id = f"{record.subject}_acq-planted{kind.replace('_', '')}_T1w"
            mask = raw / record.subject / f"{scan_id}_desc-lesion_mask.nii.gz"
            if not mask.is_file():
                rng = np.random.default_rng([settings.planted.seed, KINDS.index(kind), index])
                _plant(
                    record,
                    cohort,
                    raw / record.subject / f"{scan_id}.nii.gz",
                    mask,
                    kind,
                    shapes,
                    grid,
                    settings,
                    rng,
                )
            rows.append({"scan_id": scan_id, "label": 1, "mask": str(mask.relative_to(output / "planted"))})
        _write_labels(output / "planted" / f"labels-{kind}.tsv", rows)
    prepared = output / "planted" / "cohort"
    ingest([raw], prepared, preprocessing=settings.preprocessing, jobs=jobs, progress=progress)
    return prepared


def _plant(
    record: ScanRecord,
    cohort: Path,
    scan_path: Path,
    mask_path: Path,
    kind: Kind,
    shapes: Sequence[MaskArray] | None,
    grid: Geometry,
    settings: BenchmarkSettings,
    rng: np.random.Generator,
) -> None:
    """Write one raw scan with one lesion; the mask last, because it says that both are there."""
    raw = read_nifti((cohort / record.source).resolve())
    brain = CohortVolumes(cohort, [record])[0][1]
    lesion = _lesion(brain, shapes, grid, settings.planted, rng)
    planted, mask = plant_in_scan(
        raw, record.template_from_scan_matrix, lesion, grid, kind, draw_strength(kind, rng), rng
    )
    write_nifti(scan_path, planted.voxels, raw.geometry)
    write_nifti(mask_path, mask, raw.geometry, "uint8")


def _shapes(settings: BenchmarkSettings, root: Path, grid: Geometry) -> Sequence[MaskArray] | None:
    return None if settings.planted.shapes is None else lesion_shapes(root / settings.planted.shapes, grid)


def _lesion(
    brain: MaskArray,
    shapes: Sequence[MaskArray] | None,
    grid: Geometry,
    planted: PlantedSettings,
    rng: np.random.Generator,
) -> MaskArray:
    """Return a real shape, mirrored half of the time, that lies in the brain, or a random blob."""
    if shapes is None:
        volume = float(np.exp(rng.uniform(*np.log(planted.volume_ml))))
        return random_blob(brain, volume, grid.voxel_ml, rng)
    for _ in range(100):
        shape = shapes[int(rng.integers(len(shapes)))]
        shape = shape[::-1] if rng.random() < 0.5 else shape
        inside = (shape & brain).sum()
        if inside * grid.voxel_ml >= LEAST_LESION_ML and inside >= 0.5 * shape.sum():
            return shape
    raise ConfigError(
        "no lesion shape lies in the brain in 100 tries; check that the shapes are masks in MNI space"
    )


def _case_cohort(
    settings: BenchmarkSettings, root: Path, output: Path, jobs: int, progress: Progress
) -> Path | None:
    """Ingest real cases; their masks lie beside the scans."""
    if settings.cases is None:
        return None
    prepared = output / "cases"
    ingest([root / settings.cases], prepared, preprocessing=settings.preprocessing, jobs=jobs, progress=progress)
    rows = [
        {
            "scan_id": r.scan_id,
            "label": 1,
            "mask": str((prepared / r.lesion_mask).resolve()) if r.lesion_mask else "",
        }
        for r in read_records(prepared)
        if r.status is ScanStatus.ACCEPTED
    ]
    healthy = pd.read_csv(output / "planted" / f"labels-{settings.planted.kinds[0]}.tsv", sep="\t")
    rows += [{"scan_id": s, "label": 0, "mask": ""} for s in healthy.loc[healthy["label"] == 0, "scan_id"]]
    _write_labels(output / "planted" / "labels-cases.tsv", rows)
    return prepared


def _write_labels(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, sep="\t", index=False)


def _model(
    name: str,
    settings: BenchmarkSettings,
    cohort: Path,
    output: Path,
    jobs: int,
    device: str,
    progress: Progress,
) -> Path:
    """Train and calibrate a model, unless an earlier call has."""
    model = output / "models" / Path(name).stem
    if not (model / "metadata.json").is_file():
        train(name, cohort, model, device=device, progress=progress)
    if not list((model / "calibrations").glob("*.json")):
        calibrate(
            model,
            cohort,
            settings.alphas,
            f"benchmark {settings.name}",
            jobs=jobs,
            device=device,
            progress=progress,
        )
    return model


def _measured_on(cohort: Path, settings: BenchmarkSettings) -> dict[str, Any]:
    counts = pd.Series([r.split for r in read_records(cohort) if r.status is ScanStatus.ACCEPTED]).value_counts()
    return {"healthy": str(settings.healthy), **{name: int(counts.get(name, 0)) for name in SPLITS}}
