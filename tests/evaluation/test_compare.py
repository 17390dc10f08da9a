from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anomaly.core.errors import InputError
from anomaly.evaluation.compare import compare


def per_scan(gain: float = 0.0, seed: int = 0, n: int = 30) -> pd.DataFrame:
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    ill = np.arange(n) % 2 == 1
    difficulty = shared.random(n)
    average_precision = 0.3 * difficulty + 0.2 + gain + own.normal(0, 0.02, n)
    return pd.DataFrame(
        {
            "scan_id": [f"scan{i:02d}" for i in range(n)],
            "subject": [f"subject{i // 2}" for i in range(n)],
            "ill": ill,
            "score": shared.normal(size=n) + ill * (1 + 5 * gain),
            "voxel_average_precision": np.where(ill, average_precision, np.nan),
        }
    )


def test_a_better_model_beats_a_worse_one_by_a_paired_interval() -> None:
    found = compare({"dae": per_scan(0.1), "atlas": per_scan(0.0, seed=1)}, n_draws=500)
    difference = found.differences["atlas"]["voxel_average_precision"]
    assert difference.value == pytest.approx(0.1, abs=0.02)
    assert difference.excludes_zero
    assert found.beats("voxel_average_precision") == ["atlas"]
    assert found.n_scans == 30
    assert difference.n_subjects == 15


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    found = compare({"dae": per_scan(0.1), "atlas": per_scan(0.0, seed=1)}, n_draws=500)
    difference = found.differences["atlas"]["voxel_average_precision"]
    alone = found.values["dae"]["voxel_average_precision"]
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


def test_a_model_does_not_beat_itself() -> None:
    found = compare({"a": per_scan(), "b": per_scan()}, reference="b", n_draws=200)
    assert found.reference == "b"
    for estimate in found.differences["a"].values():
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
    assert found.beats("auroc") == []


def test_only_scans_that_all_scored_are_compared() -> None:
    fewer = per_scan()
    fewer.loc[3, "score"] = np.nan
    found = compare({"a": per_scan(), "b": fewer.drop(index=7)}, n_draws=50)
    assert (found.n_scans, found.n_left_out) == (28, 2)  # b never saw 7 and refused 3


def test_runs_without_a_common_scan_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="no scored scan in common"):
        compare({"a": per_scan(), "b": per_scan().assign(scan_id="other")})


def test_other_labels_are_not_compared() -> None:
    with pytest.raises(InputError, match="other labels"):
        compare({"a": per_scan(), "b": per_scan().assign(ill=False)})


def test_an_unknown_reference_lists_the_runs() -> None:
    with pytest.raises(InputError, match="unknown run 'c'; valid: a, b"):
        compare({"a": per_scan(), "b": per_scan()}, reference="c")
    with pytest.raises(InputError, match="no runs"):
        compare({})


def test_a_metric_only_one_run_has_is_not_compared() -> None:
    found = compare({"a": per_scan(), "b": per_scan().drop(columns="voxel_average_precision")}, n_draws=50)
    assert "voxel_average_precision" not in found.differences["b"]
    assert "voxel_average_precision" in found.values["a"]
