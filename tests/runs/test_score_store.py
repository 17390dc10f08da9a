from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomaly.core.files import read_json
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.score_store import ScoreStore, score_key

SCORE = ScanScore("sub-01_T1w", ScanStatus.SCORED, score=3.5, scores={"kl": 3.5})


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore(tmp_path / "run")


def test_a_saved_result_is_found_by_its_key(store: ScoreStore) -> None:
    saved = store.save(SCORE, "key", inference_seconds=0.25)

    assert store.find("sub-01_T1w", "key") == saved
    assert saved.scores == SCORE.scores
    assert saved.provenance["inference_seconds"] == 0.25
    assert read_json(store.folder / "sub-01_T1w" / "score.json")["provenance"]["key"] == "key"


def test_a_result_made_from_something_else_is_not_found(store: ScoreStore) -> None:
    store.save(SCORE, "key")
    assert store.find("sub-01_T1w", "another key") is None
    assert store.find("sub-02_T1w", "key") is None


def test_a_scan_that_failed_is_not_found_so_that_it_is_scored_again(store: ScoreStore) -> None:
    store.save(replace(SCORE, status=ScanStatus.FAILED), "key")
    assert store.find("sub-01_T1w", "key") is None
    store.save(replace(SCORE, status=ScanStatus.REFUSED), "key")
    assert store.find("sub-01_T1w", "key") is not None


def test_everything_that_a_result_depends_on_changes_its_key() -> None:
    facts = ("content", ScanStatus.ACCEPTED, "", "model", "calibration")
    changed = [
        score_key("other", *facts[1:]),
        score_key("content", ScanStatus.REFUSED, *facts[2:]),
        score_key("content", ScanStatus.ACCEPTED, "reason", "model", "calibration"),
        score_key("content", ScanStatus.ACCEPTED, "", "other", "calibration"),
        score_key("content", ScanStatus.ACCEPTED, "", "model", None),
    ]
    assert score_key(*facts) == score_key(*facts)
    assert len({score_key(*facts), *changed}) == 6


def test_the_key_is_that_of_earlier_versions_so_that_their_runs_continue() -> None:
    key = score_key("abc", ScanStatus.ACCEPTED, "", "75ba08c7d63b", None)
    assert key == "f74e4df7218bcdcc9c900dd544d950b32dffbc332af13fc2458b3b09085e7c6c"


def test_a_damaged_result_is_not_found_so_that_it_is_scored_again(store: ScoreStore) -> None:
    store.save(SCORE, "key")
    (store.folder / "sub-01_T1w" / "score.json").write_text("{", encoding="utf-8")
    assert store.find("sub-01_T1w", "key") is None
    assert store.read("sub-01_T1w") is None
