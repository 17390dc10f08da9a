from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from anomaly.cohort.table import read_records
from anomaly.core.errors import BundleError, InputError
from anomaly.core.files import read_json
from anomaly.core.progress import no_progress
from pipelines.benchmark import run
from pipelines.benchmark.run import benchmark
from pipelines.benchmark.settings import load_benchmark
from tests.pipelines.benchmark.conftest import write_benchmark

MADE_ONCE = {"metadata.json", "score.json", "metrics.json", "passes.json"}


def test_missing_scans_are_refused_with_the_option_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no healthy scans at .*sample_data/ixi; give --data"):
        benchmark("ixi", tmp_path)


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
    assert list(found["fpr_checks"]) == ["atlas-small-seed0", "atlas-small-seed1", "intensity-small", "both"]
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
    assert benchmark(config, output).read_text() == text
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize(("made", "calibrates"), [([], True), ([0.1], True), ([0.1, 0.2], False)])
def test_a_calibration_is_made_unless_there_is_one_for_every_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[float], calibrates: bool
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(run, "records", lambda _: [SimpleNamespace(alpha=alpha) for alpha in made])
    monkeypatch.setattr(run, "calibrate", lambda *arguments, **_: calls.append(arguments[2]))
    config = write_benchmark(tmp_path)
    config.write_text(config.read_text().replace("- 0.2", "- 0.2\n- 0.1"))
    bench = run._Benchmark(load_benchmark(config), tmp_path, (tmp_path / "cohort",), 1, "cpu", no_progress)
    run._calibrate(bench, "intensity-small")
    assert calls == ([(0.2, 0.1)] if calibrates else [])


@pytest.mark.slow
def test_an_existing_ensemble_with_other_settings_is_refused(finished: tuple[Path, Path]) -> None:
    config, output = finished
    settings = yaml.safe_load(config.read_text())
    settings["ensembles"]["both"]["how"] = "mean"
    other = config.with_name("other.yaml")
    other.write_text(yaml.safe_dump(settings))
    with pytest.raises(BundleError, match=r"models/both was merged .* than ensembles\.both says; give .* remove"):
        benchmark(other, output)
