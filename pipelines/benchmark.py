"""Several models, one cohort, one protocol, one table.

The healthy scans are split by subject (train, calibration, test); synthetic lesions are planted in the *raw* test
scans, which then go through everything a scan goes through; every model is trained, calibrated and run on the
same scans; differences are paired over subjects. Real cases, where there are any, are a sanity check beside it.

::

    output/cohort/              the healthy scans, prepared once
    output/planted/raw/         test scans with a synthetic lesion, masks; output/planted/cohort/ prepared
    output/models/<name>/       bundles     output/runs/<name>/   runs     output/evaluation/<name>/<kind>/
    output/results.md + .json   the tables
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from anomaly.cohort.splits import split_by_subject
from anomaly.cohort.table import read_records, write_manifest
from anomaly.core.config import Settings, load_yaml
from anomaly.core.files import read_json
from anomaly.core.results import ScanStatus
from pipelines.benchmark_planted import (
    PlantedSettings,
    healthy_test_scans,
    label_row,
    plant_test_scans,
    write_labels,
)
from pipelines.benchmark_table import Results, write_results
from pipelines.calibrate import calibrate
from pipelines.common import Progress, find_config, no_progress
from pipelines.evaluate import evaluate, read_per_scan
from pipelines.ingest import ingest
from pipelines.score import ScoreRequest, score
from pipelines.train import train

SPLITS = ("train", "calibration", "test")


class SplitSettings(Settings):
    """How many subjects go where; the rest is left out. Subjects the manifest has split already stay there."""

    train: float = Field(default=0.655, gt=0, lt=1, description="share of the subjects")
    calibration: float = Field(default=0.155, gt=0, lt=1)
    test: float = Field(default=0.19, gt=0, lt=1)
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
    cases = _case_cohort(settings, root, output, cohort, jobs, progress)
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
    """Plant lesions in the raw test scans and ingest them like any other scan."""
    planted = output / "planted"
    shapes = None if settings.planted.shapes is None else root / settings.planted.shapes
    manifest = plant_test_scans(settings.planted, shapes, cohort, planted, progress)
    prepared = planted / "cohort"
    ingest([manifest], prepared, preprocessing=settings.preprocessing, jobs=jobs, progress=progress)
    return prepared


def _case_cohort(
    settings: BenchmarkSettings, root: Path, output: Path, cohort: Path, jobs: int, progress: Progress
) -> Path | None:
    """Ingest real cases; their masks lie beside the scans."""
    if settings.cases is None:
        return None
    prepared = output / "cases"
    ingest([root / settings.cases], prepared, preprocessing=settings.preprocessing, jobs=jobs, progress=progress)
    rows = [
        label_row(r.scan_id, 1, str((prepared / r.lesion_mask).resolve()) if r.lesion_mask else "")
        for r in read_records(prepared)
        if r.status is ScanStatus.ACCEPTED
    ]
    rows += [label_row(record.scan_id, 0) for record in healthy_test_scans(cohort)]
    write_labels(output / "planted" / "labels-cases.tsv", rows)
    return prepared


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
