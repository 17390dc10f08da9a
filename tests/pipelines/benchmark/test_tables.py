from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly.core.files import read_json
from pipelines.benchmark.tables import Entry, Results, write_results

ENTRIES = (
    Entry("dae", ("dae",)),
    Entry("vae (2 seeds)", ("vae-seed0", "vae-seed1")),
    Entry("pca", ("pca",), "baseline"),
    Entry("atlas", ("atlas",), "baseline"),
    Entry("all", ("all",), "ensemble"),
)
GAINS = {"dae": 0.20, "vae-seed0": 0.05, "vae-seed1": 0.11, "pca": 0.10, "atlas": 0.05, "all": 0.20}
MEASURED_ON = {"healthy": "ixi", "train": 100, "calibration": 24, "test": 30}


def per_scan(gain: float, model: int) -> pd.DataFrame:
    """Return the evaluation of a model on 30 scans of 15 subjects; its voxel AP is higher by ``gain``."""
    shared, own = np.random.default_rng(0), np.random.default_rng(model + 1)
    is_abnormal = np.arange(30) % 2 == 1
    precision = 0.3 * shared.random(30) + gain + own.normal(0, 0.01, 30)
    return pd.DataFrame(
        {
            "scan_id": [f"scan{i:02d}" for i in range(30)],
            "subject": [f"subject{i // 2}" for i in range(30)],
            "is_abnormal": is_abnormal,
            "score": shared.normal(size=30) + 8 * is_abnormal * gain,
            "voxel_average_precision": np.where(is_abnormal, precision, np.nan),
        }
    )


def metadata(family: str, **more: Any) -> dict[str, Any]:
    training = {"n_parameters": 1_234, "steps": 400, "seconds": 90.0}
    return {"family": family, "training": training, "model_id": "0123456789ab", **more}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = Results("a benchmark", ENTRIES, MEASURED_ON)
    for number, (model, gain) in enumerate(GAINS.items()):
        members = {"members": {"dae": "1", "pca": "2"}} if model == "all" else {}
        cost = {"seconds_per_scan": None if model == "atlas" else 0.456, "passes_per_image": float(number)}
        results.add_model(model, metadata("ensemble" if members else model, **members), cost)
        for kind in ("dark", "cases"):
            results.add(model, kind, per_scan(gain, number), [])
    folder = tmp_path_factory.mktemp("table")
    write_results(results, folder)
    return folder


def differences(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = read_json(folder / "results.json")["differences"]
    return {(d["metric"], d["first"], d["second"]): d for d in found if d["kind"] == "dark"}


@pytest.mark.slow
def test_the_best_family_is_compared_with_the_best_baseline(written: Path) -> None:
    found = differences(written)["voxel_average_precision", "dae", "pca"]

    assert found["roles"] == ["best family", "best baseline"]
    assert found["difference"]["value"] == pytest.approx(0.1, abs=0.01)
    assert found["difference"]["excludes_zero"]
    line = next(line for line in (written / "results.md").read_text().splitlines() if "`dae` − " in line)
    assert line.startswith("| best family `dae` − best baseline `pca` | voxel AP | 0.")
    assert line.endswith("| yes, better |")


@pytest.mark.slow
def test_an_ensemble_is_compared_with_the_best_single_model_and_may_gain_nothing(written: Path) -> None:
    found = differences(written)["voxel_average_precision", "all", "dae"]

    assert found["roles"] == ["ensemble", "best single model"]
    assert not found["difference"]["excludes_zero"]
    line = next(line for line in (written / "results.md").read_text().splitlines() if "`all` − " in line)
    assert line.endswith("| no |")


def test_real_cases_are_listed_without_a_comparison(written: Path) -> None:
    _, cases = (written / "results.md").read_text().split("### Real cases")

    assert "| dae |" in cases
    assert "excludes zero" not in cases


def test_a_model_of_several_seeds_is_one_row_with_the_spread_between_them(written: Path) -> None:
    text = (written / "results.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| vae (2 seeds)"))
    spread = read_json(written / "results.json")["between_seeds"]["dark"]["vae (2 seeds)"]

    assert f") ± {spread['voxel_average_precision']:.2f} |" in row
    assert spread["voxel_average_precision"] == pytest.approx(0.06 / np.sqrt(2), abs=0.01)
    assert "the mean over the seeds ± their standard deviation" in text


def test_the_cost_of_each_model_is_listed(written: Path) -> None:
    rows = {
        line.split(" | ")[0].removeprefix("| "): line
        for line in (written / "results.md").read_text().splitlines()
        if "`0123456789ab`" in line
    }

    assert list(rows) == list(GAINS)
    assert rows["vae-seed1"] == "| vae-seed1 | vae-seed1 | 1,234 | 400 | 1.5 | 0.46 | 2 | `0123456789ab` |"
    assert "| atlas | 1,234 | 400 | 1.5 | – | 4 |" in rows["atlas"]
    assert "| ensemble of dae, pca |" in rows["all"]
