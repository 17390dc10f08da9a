from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.benchmark.run import benchmark
from pipelines.common import SAMPLE
from tests.conftest import without_worker_processes

HEALTHY = {"train": 4, "calibration": 4, "test": 3}


def few_sample_scans(path: Path) -> Path:
    """Write a manifest of a few healthy MR scans of the sample."""
    with (SAMPLE / "manifest.csv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if (r["modality"], r["group"]) == ("T1w", "healthy")]
    few = [row for split, n in HEALTHY.items() for row in [r for r in rows if r["split"] == split][:n]]
    table = pd.DataFrame(few)
    table["path"] = [str(SAMPLE / p) for p in table["path"]]
    table.to_csv(path, index=False)
    return path


def write_benchmark(folder: Path) -> Path:
    settings = {
        "name": "a few",
        "healthy": few_sample_scans(folder / "manifest.csv").name,
        "preprocessing": "t1w-4mm",
        "models": ["atlas-small", "intensity-small"],
        "baselines": ["intensity-small"],
        "seeds": {"atlas-small": [0, 1]},
        "ensembles": {"both": {"members": ["atlas-small-seed0", "atlas-small-seed1"], "p_values": "conformal"}},
        "planted": {"kinds": ["dark"], "per_subject": 2, "volume_ml": [20.0, 40.0]},
        "alphas": [0.2],
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the config of a benchmark and its output."""
    folder = tmp_path_factory.mktemp("benchmark")
    config = write_benchmark(folder)
    with without_worker_processes():
        benchmark(config, folder / "out")
    return config, folder / "out"
