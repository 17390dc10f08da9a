from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import InputError
from anomaly.scoring.ensemble import MergeSettings
from pipelines.validation.checks.one_class.result import (
    SCORED_PARTS,
    ClassScores,
    OneClassResult,
    load_classes,
    merged,
    save_classes,
)


def test_a_false_positive_rate_above_its_target_is_seen() -> None:
    rng = np.random.default_rng(0)
    abnormal = np.repeat([False, True], 500)
    overfitted = {"a": rng.normal(-1, 1, 400)}  # lower scores, as of images that were trained on
    scores = {"held_out": overfitted, "calibration": overfitted, "test": {"a": rng.normal(0, 1, 1000)}}
    result = OneClassResult("a", (0.05, 0.1), (ClassScores(0, 0, abnormal, scores),))
    assert result.measures()["fpr_not_exceeded"] == 0
    assert set(result.table()["band_0.05"]) == {"above"}
    assert result.measures()["fpr_0.1"] > 0.2


def test_a_score_that_is_not_finite_is_refused() -> None:
    broken = {"a": np.array([0.1, np.nan])}
    with pytest.raises(InputError, match=r"digit 4, seed 1: score 'a' of part 'test' is not finite"):
        ClassScores(4, 1, np.array([True, False]), {"test": broken})


def test_an_ensemble_detects_what_each_of_two_members_misses() -> None:
    rng = np.random.default_rng(0)
    abnormal = np.arange(3000) >= 1000
    model_inputs = {"a": (np.arange(3000) >= 2000).astype(float), "b": abnormal & (np.arange(3000) < 2000)}
    results = {}
    for name, half in model_inputs.items():
        scores = {
            part: {"score": np.exp(rng.normal(0, 0.3, n))} for part, n in (("held_out", 200), ("calibration", 500))
        }
        scores["test"] = {"score": np.exp(rng.normal(0, 0.3, 3000) + 2 * half)}
        results[name] = OneClassResult("score", (0.05,), (ClassScores(0, 0, abnormal, scores, 1.5),))
    together = merged(results)
    alone = [result.measures()["auroc"] for result in results.values()]
    assert together.declared == "ensemble"
    assert together.measures()["auroc"] > 0.99 > max(alone) + 0.2
    assert together.measures()["auroc_a"] == alone[0]
    assert together.measures()["fpr_not_exceeded"] == 1
    assert together.measures()["seconds"] == 3
    cautious = merged(results, MergeSettings(how="mean"))
    assert cautious.measures()["auroc"] < together.measures()["auroc"]


def test_saved_classes_are_loaded_as_they_were_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    scores = {part: {"a.b": np.array([0.5, 1.5])} for part in SCORED_PARTS}
    path = tmp_path / "scores.npz"
    assert load_classes(path) == []
    save_classes(path, [("key", ClassScores(3, 1, np.array([False, True]), scores, 2.5))])
    ((key, found),) = load_classes(path)
    assert (key, found.digit, found.seed, found.seconds) == ("key", 3, 1, 2.5)
    assert found.abnormal.tolist() == [False, True]
    assert {part: found.scores[part]["a.b"].tolist() for part in SCORED_PARTS} == {
        part: [0.5, 1.5] for part in SCORED_PARTS
    }
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="delete it to score anew"):
        load_classes(path)
