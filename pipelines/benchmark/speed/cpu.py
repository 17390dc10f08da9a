"""Measure speed and memory on a CPU. ``make bench`` prints the table; docs/benchmarks.md holds a copy.

Ingest is timed in processor seconds of one core. The other figures are ratios or differences within one run,
because wall times on a shared machine are noisy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomaly.bundle.store import load_bundle
from anomaly.cohort.record import ScanRecord
from anomaly.cohort.table import accepted, read_records, write_manifest
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.files import read_json, write_json
from anomaly.io.nifti import read_nifti
from anomaly.models.registry import create
from anomaly.preprocessing.chain import Chain
from anomaly.training.settings import TrainingSettings
from pipelines.benchmark.tables import Measurement, measurement_table
from pipelines.common import SAMPLE
from pipelines.ingest import ingest, load_chain
from pipelines.score import ScoreRequest, score
from pipelines.train import train

SCAN_COUNTS = (10, 150, 300)  # scored in one run, to see whether memory grows


def measure_speed(data: Path | None, model: Path | None, cohort: Path | None) -> list[Measurement]:
    """Measure ingest, scoring, memory and training.

    Parameters
    ----------
    data
        Folder of real scans (``ixi/`` and ``pathology/``); without it, ingest is measured on the sample.
    model, cohort
        A trained bundle and a cohort with its preprocessing; without them, a small model is trained on the sample.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        rows = list(ingest_seconds(data))
        if model is None or cohort is None:
            model, cohort = _small_model(work)
        rows += [forward_share(model, cohort, work), memory_growth(model, cohort, work)]
        rows += [step_ratio(cohort, model, precision, work) for precision in ("32", "bf16")]
    return rows


def ingest_seconds(data: Path | None) -> Iterable[Measurement]:
    """Yield processor seconds of the preprocessing per scan, on one core, without the first scan (warm-up)."""
    if data is None:
        scans = sorted((SAMPLE / "mr").glob("sub-0[1-6]/anat/*_T1w.nii.gz"))
        yield Measurement("ingest, sample brain, 4 mm", _seconds(scans, "t1w-4mm"))
        return
    brains = sorted((data / "ixi").glob("sub-*/anat/*_T1w.nii.gz"))[:7]
    yield Measurement("ingest, 2 mm brain (IXI)", _seconds(brains, "t1w"), "≤ 4 s")
    fine = sorted((data / "pathology").glob("sub-TCGA*/anat/*_T1w.nii.gz"))
    yield Measurement("ingest, 1 mm brain, 240 × 240 × 155 (TCGA)", _seconds([brains[0], *fine], "t1w"), "≤ 12 s")


def forward_share(model: Path, cohort: Path, work: Path) -> Measurement:
    """Measure the share of the scoring loop's time that is spent in the network."""
    network_seconds = 0.0
    bundle = load_bundle(model)
    evidence = type(bundle.scorer.detector).evidence

    def timed_evidence(self: Any, *arguments: Any) -> Any:
        nonlocal network_seconds
        began = time.perf_counter()
        try:
            return evidence(self, *arguments)
        finally:
            network_seconds += time.perf_counter() - began

    first: list[tuple[float, float]] = []
    last: list[tuple[float, float]] = []

    def record(done: int, total: int, message: str) -> None:
        del total, message
        (first if done == 1 else last).append((time.perf_counter(), network_seconds))

    folder = _copies(cohort, work / "share", 30)
    type(bundle.scorer.detector).evidence = timed_evidence  # type: ignore[assignment, method-assign]
    try:
        score(ScoreRequest(model, (folder,), work / "share_run"), record)
    finally:
        type(bundle.scorer.detector).evidence = evidence  # type: ignore[method-assign]
    (start, network_before), (end, network_after) = first[0], last[-1]
    share = (network_after - network_before) / (end - start)
    per_scan = (end - start) / 29
    return Measurement(
        f"scoring, share of time in the network ({per_scan:.2f} s per scan)", f"{share:.0%}", "≥ 80 %"
    )


def memory_growth(model: Path, cohort: Path, work: Path) -> Measurement:
    """Measure the peak memory of ``anomaly score`` on few and on many scans, each in its own process."""
    peaks = {}
    for n in SCAN_COUNTS:
        folder = _copies(cohort, work / f"copies{n}", n)
        command = [sys.executable, "-m", "anomaly", "score", str(model), str(folder), "-o", str(work / f"run{n}")]
        peaks[n] = _peak_mebibytes([*command, "-q"])
    text = ", ".join(f"{peak:.0f} MiB for {n} scans" for n, peak in peaks.items())
    return Measurement("scoring, peak memory", text, "does not grow")


def step_ratio(cohort: Path, model: Path, precision: str, work: Path) -> Measurement:
    """Measure the time of a training step relative to that of the bare network step."""
    from pipelines.benchmark.speed.step_timing import step_overhead

    experiment = load_bundle(model).config
    settings = (experiment.training or TrainingSettings()).model_copy(update={"precision": precision})
    source = CohortVolumes(cohort)
    detector = create(experiment.model_settings(), source.grid)
    cost = step_overhead(detector, source, settings, work / f"steps-{precision}")
    name = f"training step, full over bare, {experiment.name}, {'float32' if precision == '32' else 'bfloat16'}"
    seconds = f"{statistics.median(cost.full):.3f} s over {statistics.median(cost.bare):.3f} s"
    return Measurement(name, f"{cost.ratio:.2f} ({seconds})", "≤ 1.15")


def _seconds(scans: list[Path], chain: str) -> str:
    prepared = Chain(load_chain(chain))

    def one(path: Path) -> float:
        began = time.process_time()
        prepared.apply(read_nifti(path))
        return time.process_time() - began

    spent = [one(path) for path in scans][1:]
    return f"{sum(spent) / len(spent):.1f} s, worst {max(spent):.1f} s ({len(spent)} scans)"


def _small_model(work: Path) -> tuple[Path, Path]:
    cohort, model = work / "cohort", work / "model"
    ingest([SAMPLE / "manifest.csv"], cohort, preprocessing="t1w-4mm")
    train("dae-small", cohort, model)
    return model, cohort


def _copies(cohort: Path, folder: Path, n: int) -> Path:
    """Write a cohort of ``n`` scans that repeats the volumes of another cohort, and return its folder."""
    records = accepted(read_records(cohort))
    write_manifest(folder, [_copy(records[i % len(records)], i, cohort, folder) for i in range(n)])
    write_json(folder / "cohort.json", read_json(cohort / "cohort.json"))
    return folder


def _copy(record: ScanRecord, number: int, cohort: Path, folder: Path) -> ScanRecord:
    volume, mask = (os.path.relpath(cohort / name, folder) for name in (record.volume, record.mask))
    return replace(record, scan_id=f"copy-{number:03d}", volume=volume, mask=mask, split="")


def _peak_mebibytes(command: list[str]) -> float:
    """Return the peak resident memory of a command; a helper process waits for this command only."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


def main() -> None:
    """Measure and print the table; ``make bench`` calls this."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("ANOMALY_DATA"))
    parser.add_argument("--model", type=Path, help="a trained bundle; default: a small one, trained on the sample")
    parser.add_argument("--cohort", type=Path, help="a cohort with the model's preprocessing")
    options = parser.parse_args()
    data = Path(options.data) if options.data else None
    print(measurement_table(measure_speed(data, options.model, options.cohort)), end="")


if __name__ == "__main__":
    main()
