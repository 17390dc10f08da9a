from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from anomaly.cohort.table import read_records
from anomaly.core.errors import BundleError, CohortError, InputError
from anomaly.core.files import read_json
from anomaly.core.progress import no_progress
from pipelines.benchmark.planted_lesions import PlantedSettings, plant_test_scans
from pipelines.benchmark.run import benchmark
from tests.pipelines.cohorts import make_cohort

SAMPLE = Path(__file__).resolve().parents[3] / "sample_data"
MADE_ONCE = {"metadata.json", "score.json", "metrics.json", "passes.json"}
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


def test_missing_scans_are_refused_with_the_option_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no healthy scans at .*sample_data/ixi; give --data"):
        benchmark("ixi", tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the config of a benchmark and its output."""
    folder = tmp_path_factory.mktemp("benchmark")
    config = write_benchmark(folder)
    benchmark(config, folder / "out", jobs=2)
    return config, folder / "out"


@pytest.mark.slow
def test_models_are_compared_on_planted_copies_of_the_test_scans(finished: tuple[Path, Path]) -> None:
    config, output = finished
    text = (output / "results.md").read_text()
    assert "9 scans of 3 subjects" in text
    assert "best family `atlas-small (2 seeds)` − best baseline `intensity-small`" in text
    assert "ensemble `both` − best single model `atlas-small (2 seeds)`" in text
    found = json.loads((output / "results.json").read_text())
    atlas, intensity, both = (
        found["lesions"]["dark"][name]["voxel_average_precision"]["value"]
        for name in ("atlas-small (2 seeds)", "intensity-small", "both")
    )
    assert both == atlas > intensity  # the seed of an atlas changes nothing
    assert list(found["promises"]) == ["atlas-small-seed0", "atlas-small-seed1", "intensity-small", "both"]
    assert all(model["seconds_per_scan"] > 0 for model in found["models"].values())
    trained = [read_json(output / "models" / name / "metadata.json")["training"] for name in found["models"]]
    assert [training.get("seed") for training in trained] == [0, 1, 0, None]

    planted = read_records(output / "planted" / "cohort")
    assert {record.subject for record in planted} == {
        r.subject for r in read_records(output / "cohort") if r.split == "test"
    }
    labels = pd.read_csv(output / "planted" / "labels-dark.tsv", sep="\t")
    assert labels["label"].tolist() == [0] * 3 + [1] * 6
    assert set(labels.loc[labels["label"] == 1, "scan_id"]) == {record.scan_id for record in planted}

    made = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name in MADE_ONCE}
    assert {path.name for path in made} == MADE_ONCE
    assert benchmark(config, output, jobs=2).read_text() == text
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.slow
def test_an_existing_ensemble_with_other_settings_is_refused(finished: tuple[Path, Path]) -> None:
    config, output = finished
    settings = yaml.safe_load(config.read_text())
    settings["ensembles"]["both"]["how"] = "mean"
    other = config.with_name("other.yaml")
    other.write_text(yaml.safe_dump(settings))
    with pytest.raises(BundleError, match=r"models/both was merged .* than ensembles\.both says; give .* remove"):
        benchmark(other, output, jobs=2)


@pytest.mark.slow
def test_more_copies_leave_the_first_ones_as_they_are(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, output = finished
    more = PlantedSettings(kinds=("dark",), per_subject=3, volume_ml=(20.0, 40.0))
    manifest = plant_test_scans(more, None, output / "cohort", tmp_path / "more", no_progress)
    assert len(pd.read_csv(manifest)) == 9
    old = {path.name: path for path in (output / "planted" / "raw").rglob("*.nii.gz")}
    new = {path.name: path for path in (tmp_path / "more" / "raw").rglob("*.nii.gz")}
    assert len(old) == 12
    assert len(new) == 18
    for name, path in old.items():
        assert np.array_equal(nib.load(path).get_fdata(), nib.load(new[name]).get_fdata())


def test_without_a_test_scan_nothing_can_be_planted(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(3), split="train")
    with pytest.raises(CohortError, match="no healthy test scan"):
        plant_test_scans(PlantedSettings(), None, cohort, tmp_path / "out", no_progress)
