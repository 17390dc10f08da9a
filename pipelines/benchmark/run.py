"""Compare several models on one cohort.

The healthy scans are split by subject into training, calibration and test scans. Synthetic lesions are planted in
the *raw* test scans, which are then preprocessed like any other scan. Every model is trained, calibrated and
evaluated on the same scans; an ensemble of trained models is one more model. Differences are paired over subjects.
Real cases, if there are any, are a sanity check. A repeated call continues where an earlier one stopped.

::

    output/cohort/              the healthy scans, prepared once
    output/planted/raw/         test scans with a synthetic lesion, masks; output/planted/cohort/ prepared
    output/models/<name>/       bundles     output/runs/<name>/   runs     output/evaluation/<name>/<kind>/
    output/results.md + .json   the tables; <name> is <name>-seed<k> where a model is trained from several seeds
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from anomaly.bundle.store import load_bundle
from anomaly.calibration.record import records
from anomaly.cohort.splits import split_by_subject
from anomaly.cohort.table import read_records, write_manifest
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.aliases import current_evaluation
from anomaly.core.config import load_yaml
from anomaly.core.errors import BundleError, InputError
from anomaly.core.files import read_json, read_json_if_whole, sha256_of_file, write_json
from anomaly.core.progress import Progress, no_progress
from anomaly.core.results import ScanStatus
from anomaly.models.device import choose_device
from anomaly.runs.reader import read_scores
from pipelines.benchmark.planted_lesions import healthy_test_scans, label_row, plant_test_scans, write_labels
from pipelines.benchmark.settings import BenchmarkSettings, EnsembleSettings, load_benchmark
from pipelines.benchmark.speed.network_passes import network_passes
from pipelines.benchmark.tables import Results, write_results
from pipelines.calibrate import calibrate
from pipelines.common import SAMPLE, find_config, shipped_configs
from pipelines.ensemble import ensemble
from pipelines.evaluate import evaluate, read_per_scan
from pipelines.ingest import ingest
from pipelines.score import ScoreRequest, score
from pipelines.train import train

SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True)
class _Benchmark:
    """Settings, folders and hardware of a benchmark, the same for each model."""

    settings: BenchmarkSettings
    output: Path
    sources: tuple[Path, ...]  # cohorts: healthy, planted, cases
    jobs: int
    device: str
    progress: Progress

    @property
    def cohort(self) -> Path:
        return self.sources[0]

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*self.settings.planted.kinds, *(("cases",) if self.settings.cases else ()))

    def model(self, name: str) -> Path:
        return self.output / "models" / name


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
        The folder that paths in the config are relative to; by default the config's own folder, for shipped
        configs ``sample_data/``.

    Raises
    ------
    InputError
        The healthy scans were not found.
    BundleError
        An ensemble of an earlier call differs from the one that the config describes.
    """
    path = find_config(config, "benchmarks")
    settings = load_benchmark(path)
    root = data or (SAMPLE if path in shipped_configs("benchmarks").values() else path.parent)
    if not (root / settings.healthy).exists():
        raise InputError(f"no healthy scans at {root / settings.healthy}; give --data, the folder that holds them")
    cohort = _healthy_cohort(settings, root, output, jobs, progress)
    planted = _planted_cohort(settings, root, output, cohort, jobs, progress)
    cases = _case_cohort(settings, root, output, cohort, jobs, progress)
    bench = _Benchmark(settings, output, (cohort, planted, *([cases] if cases else ())), jobs, device, progress)
    results = Results(settings.name, settings.entries, _measured_on(cohort, settings))
    for name in _train_models(bench):
        _calibrate(bench, name)
        _score(bench, name)
        results.add_model(name, read_json(bench.model(name) / "metadata.json"), _cost_of_scoring(bench, name))
        for kind in bench.kinds:
            results.add(name, kind, *_evaluate(bench, name, kind))
    return write_results(results, output)


def _healthy_cohort(settings: BenchmarkSettings, root: Path, output: Path, jobs: int, progress: Progress) -> Path:
    """Ingest the healthy scans and write their split into the manifest, where every later step reads it."""
    cohort = output / "cohort"
    ingest([root / settings.healthy], cohort, preprocessing=settings.preprocessing, jobs=jobs, progress=progress)
    records = read_records(cohort)
    accepted = [record for record in records if record.status is ScanStatus.ACCEPTED]
    shares = {name: getattr(settings.split, name) for name in SPLITS}
    splits = split_by_subject(accepted, shares, seed=settings.split.seed)
    split_of = {record.scan_id: name for name in SPLITS for record in splits[name]}
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
    """Ingest the real cases and write their labels; the lesion masks are next to the scans."""
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


def _train_models(bench: _Benchmark) -> Iterator[str]:
    """Train each model and merge each ensemble, unless that was done before; yield their names."""
    for config, seed, name in bench.settings.trainings:
        if not (bench.model(name) / "metadata.json").is_file():
            train(config, bench.cohort, bench.model(name), seed=seed, device=bench.device, progress=bench.progress)
        yield name
    for name, merged in bench.settings.ensembles.items():
        if (bench.model(name) / "metadata.json").is_file():
            _refuse_another_ensemble(bench, name, merged)
        else:
            ensemble([bench.model(member) for member in merged.members], bench.model(name), merged.merge)
        yield name


def _refuse_another_ensemble(bench: _Benchmark, name: str, expected: EnsembleSettings) -> None:
    """Raise :class:`BundleError` if the bundle of an ensemble was merged from other models or in another way."""
    folder = bench.model(name)
    members = [
        (member, read_json(bench.model(member) / "metadata.json")["model_id"]) for member in expected.members
    ]
    found = read_json(folder / "metadata.json").get("members", {})
    merge = load_yaml(folder / "config.yaml").get("merge")
    if merge != expected.merge.model_dump(mode="json") or list(found.items()) != members:
        raise BundleError(
            f"{folder} was merged from other models or with other settings than ensembles.{name} says; give that "
            f"ensemble another name, or remove {folder} and {bench.output / 'runs' / name}"
        )


def _calibrate(bench: _Benchmark, name: str) -> None:
    model, settings = bench.model(name), bench.settings
    if set(settings.alphas) <= {record.alpha for record in records(model)}:
        return
    calibrate(
        model,
        bench.cohort,
        settings.alphas,
        f"benchmark {settings.name}",
        jobs=bench.jobs,
        device=bench.device,
        allow_command=True,  # nothing is run: the scans are ingested
        progress=bench.progress,
    )


def _score(bench: _Benchmark, name: str) -> None:
    request = ScoreRequest(
        model=bench.model(name),
        sources=bench.sources,
        output=bench.output / "runs" / name,
        split="test",
        alpha=min(bench.settings.alphas),
        jobs=bench.jobs,
        device=bench.device,
        allow_command=True,  # nothing is run: the scans are ingested
    )
    score(request, bench.progress)


def _evaluate(bench: _Benchmark, name: str, kind: str) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return the per-scan table and the FPR checks of a run, measured unless this run was evaluated before."""
    run, labels = bench.output / "runs" / name, bench.output / "planted" / f"labels-{kind}.tsv"
    folder = bench.output / "evaluation" / name / kind
    inputs = {path.name: sha256_of_file(path) for path in (run / "scores.parquet", labels)}
    record = folder / "measured.json"
    if read_json_if_whole(record) != inputs:
        evaluate(run, labels, output=folder)
        write_json(record, inputs)
    return read_per_scan(folder), current_evaluation(read_json(folder / "metrics.json"))["fpr_checks"]


def _cost_of_scoring(bench: _Benchmark, name: str) -> dict[str, float | None]:
    """Return the median seconds per scan in the networks, if the run recorded them, and passes per image."""
    found = [score.provenance for score in read_scores(bench.output / "runs" / name)]
    seconds = [provenance["inference_seconds"] for provenance in found if "inference_seconds" in provenance]
    return {
        "seconds_per_scan": median(seconds) if seconds else None,
        "passes_per_image": sum(_passes(bench, member) for member in _members(bench, name)),
    }


def _members(bench: _Benchmark, name: str) -> tuple[str, ...]:
    merged = bench.settings.ensembles.get(name)
    return (name,) if merged is None else merged.members


def _passes(bench: _Benchmark, name: str) -> float:
    """Return the network passes per image of a trained model, counted on one test scan and then stored."""
    model_id = read_json(bench.model(name) / "metadata.json")["model_id"]
    note = bench.output / "evaluation" / name / "passes.json"
    if (read_json_if_whole(note) or {}).get("model_id") != model_id:
        scans = CohortVolumes(bench.cohort, healthy_test_scans(bench.cohort)[:1])
        passes = network_passes(
            load_bundle(bench.model(name), choose_device(bench.device)).scorer, *scans[0], scans.covariates(0)
        )
        write_json(note, {"model_id": model_id, "passes_per_image": passes})
    return float(read_json(note)["passes_per_image"])


def _measured_on(cohort: Path, settings: BenchmarkSettings) -> dict[str, Any]:
    counts = pd.Series([r.split for r in read_records(cohort) if r.status is ScanStatus.ACCEPTED]).value_counts()
    return {"healthy": str(settings.healthy), **{name: int(counts.get(name, 0)) for name in SPLITS}}
