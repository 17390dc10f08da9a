from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomaly.core.files import read_json, write_json, write_text
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.layout import score_path, volumes_path
from anomaly.runs.score_store import FILES, ScoreStore, score_key

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
        score_key(*facts, covariates=(70.0, 1.0)),
        score_key(*facts, covariates=(71.0, 1.0)),
    ]
    assert score_key(*facts) == score_key(*facts)
    assert len({score_key(*facts), *changed}) == 8


def test_the_key_is_that_of_earlier_versions_so_that_their_runs_continue() -> None:
    key = score_key("abc", ScanStatus.ACCEPTED, "", "75ba08c7d63b", None)
    assert key == "f74e4df7218bcdcc9c900dd544d950b32dffbc332af13fc2458b3b09085e7c6c"


def save_with_files(store: ScoreStore) -> list[Path]:
    """Save a result with a map and volumes, and return their paths."""
    files = [store.folder / "sub-01_T1w" / "map.nii.gz", volumes_path(store.folder, "sub-01_T1w")]
    for path in files:
        write_text(path, path.name)
    store.save(replace(SCORE, outputs={"anomaly_map": "sub-01_T1w/map.nii.gz"}), "key")
    return files


def test_a_result_whose_files_are_whole_is_found(store: ScoreStore) -> None:
    save_with_files(store)
    found = store.find("sub-01_T1w", "key")
    assert found is not None
    assert set(found.provenance[FILES]) == {
        "sub-01_T1w/map.nii.gz", "sub-01_T1w/sub-01_T1w_space-template_volumes.npz",
    }  # fmt: skip


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("content", [None, "", "cut", "map.nii.gX"])
def test_a_result_with_a_missing_or_damaged_file_is_not_found_so_that_it_is_made_again(
    store: ScoreStore, number: int, content: str | None
) -> None:
    path = save_with_files(store)[number]
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert store.find("sub-01_T1w", "key") is None


def test_a_result_of_an_earlier_version_is_found_if_its_files_are_there(store: ScoreStore) -> None:
    files = save_with_files(store)
    path = score_path(store.folder, "sub-01_T1w")
    values = read_json(path)
    del values["provenance"][FILES]
    write_json(path, values)
    assert store.find("sub-01_T1w", "key") is not None
    files[1].unlink()
    assert store.find("sub-01_T1w", "key") is None


@pytest.mark.parametrize("content", ["", '{"scan_id": "sub-01', "null", "{}", '{"status": "unheard of"}'])
def test_a_damaged_result_is_not_found(store: ScoreStore, content: str) -> None:
    store.save(SCORE, "key")
    score_path(store.folder, "sub-01_T1w").write_text(content)
    assert store.find("sub-01_T1w", "key") is None
