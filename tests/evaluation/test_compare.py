from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anomaly.core.errors import InputError
from anomaly.evaluation.compare import compare


def per_scan(gain: float = 0.0, seed: int = 0, n: int = 30) -> pd.DataFrame:
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    is_abnormal = np.arange(n) % 2 == 1
    difficulty = shared.random(n)
    average_precision = 0.3 * difficulty + 0.2 + gain + own.normal(0, 0.02, n)
    return pd.DataFrame(
        {
            "scan_id": [f"scan{i:02d}" for i in range(n)],
            "subject": [f"subject{i // 2}" for i in range(n)],
            "is_abnormal": is_abnormal,
            "score": shared.normal(size=n) + is_abnormal * (1 + 5 * gain),
            "voxel_average_precision": np.where(is_abnormal, average_precision, np.nan),
        }
    )


def test_a_better_model_beats_a_worse_one_by_a_paired_interval() -> None:
    found = compare({"dae": per_scan(0.1), "atlas": per_scan(0.0, seed=1)}, n_draws=500)
    difference = found.difference("dae", "atlas", "voxel_average_precision")
    assert difference.value == pytest.approx(0.1, abs=0.02)
    assert difference.excludes_zero
    assert found.difference("atlas", "dae", "voxel_average_precision").value == pytest.approx(-difference.value)
    assert found.best("voxel_average_precision", ["atlas", "dae"]) == "dae"
    assert found.n_scans == 30
    assert difference.n_subjects == 15


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    found = compare({"dae": per_scan(0.1), "atlas": per_scan(0.0, seed=1)}, n_draws=500)
    difference = found.difference("dae", "atlas", "voxel_average_precision")
    alone = found.values["dae"]["voxel_average_precision"]
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


def test_a_model_does_not_beat_itself() -> None:
    found = compare({"a": per_scan(), "b": per_scan()}, n_draws=200)
    for metric in found.values["a"]:
        estimate = found.difference("a", "b", metric)
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
        assert not estimate.excludes_zero


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
        compare({"a": per_scan(), "b": per_scan().assign(is_abnormal=False)})


def test_an_unknown_run_lists_those_that_have_the_metric() -> None:
    found = compare({"a": per_scan(), "b": per_scan().drop(columns="voxel_average_precision")}, n_draws=50)
    with pytest.raises(InputError, match="unknown run with auroc 'c'; valid: a, b"):
        found.difference("a", "c", "auroc")
    with pytest.raises(InputError, match="unknown run with voxel_average_precision 'b'; valid: a"):
        found.difference("a", "b", "voxel_average_precision")
    with pytest.raises(InputError, match="no runs"):
        compare({})


def test_a_run_without_a_metric_is_not_the_best_at_it() -> None:
    found = compare({"a": per_scan(), "b": per_scan(0.1).drop(columns="voxel_average_precision")}, n_draws=50)
    assert found.best("voxel_average_precision", ["a", "b"]) == "a"
    assert found.best("voxel_average_precision", ["b"]) is None


@pytest.mark.slow
def test_the_value_of_several_trainings_is_their_mean_with_a_standard_deviation() -> None:
    trainings = [per_scan(0.1, seed) for seed in range(3)]
    trainings[2]["score"] += np.random.default_rng(5).normal(0, 2, 30)
    found = compare({"dae": trainings, "atlas": per_scan(seed=7)}, n_draws=300)
    alone = compare({f"{seed}": table for seed, table in enumerate(trainings)}, n_draws=300)

    for metric, estimate in found.values["dae"].items():
        values = [of_seed[metric].value for of_seed in alone.values.values()]
        assert estimate.value == pytest.approx(np.mean(values))
        assert found.spread["dae"][metric] == pytest.approx(np.std(values, ddof=1))
        gain = estimate.value - found.values["atlas"][metric].value
        assert found.difference("dae", "atlas", metric).value == pytest.approx(gain)
    assert "atlas" not in found.spread
