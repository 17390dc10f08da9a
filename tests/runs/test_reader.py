from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.errors import DamagedFileError, InputError
from anomaly.core.files import read_json, write_json
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.layout import score_path, volumes_path
from anomaly.runs.reader import RunInfo, read_neighbours, read_run_info, read_score, read_scores, read_volumes
from anomaly.runs.score_tables import write_tables
from tests.reports.factory import REFERENCE


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run at .*anomaly score"):
        read_run_info(tmp_path)


def test_a_run_that_lacks_what_a_page_needs_is_refused(run_dir: Path, tmp_path: Path) -> None:
    values = read_json(run_dir / "run.json")
    write_json(tmp_path / "run.json", {key: value for key, value in values.items() if key != "display"})
    with pytest.raises(InputError, match="lacks display"):
        read_run_info(tmp_path)


def test_the_reference_is_that_of_the_declared_score(run: RunInfo) -> None:
    assert run.reference == REFERENCE.tolist()


def test_without_a_calibration_there_is_no_reference_threshold_or_rate(uncalibrated_dir: Path) -> None:
    run = read_run_info(uncalibrated_dir)
    assert (run.reference, run.threshold, run.alpha) == ([], None, None)


def test_every_scan_is_read_once_whether_it_has_a_folder_or_only_a_row(run_dir: Path) -> None:
    scores = read_scores(run_dir)
    by_id = {score.scan_id: score.status for score in scores}
    assert len(scores) == len(by_id) == 8
    assert by_id["sub-91_T1w"] == ScanStatus.REFUSED
    assert by_id["sub-92_T1w"] == ScanStatus.FAILED
    assert by_id["sub-93_CT"] == ScanStatus.REFUSED


def test_the_date_of_a_resumed_run_changes_no_page(run_dir: Path, tmp_path: Path) -> None:
    values = read_json(run_dir / "run.json")
    write_json(tmp_path / "run.json", values | {"created_at": "2031-01-01", "command": "again"})
    assert read_run_info(tmp_path).fingerprint == read_run_info(run_dir).fingerprint
    write_json(tmp_path / "run.json", values | {"display": values["display"] | {"evidence_max": 9.0}})
    assert read_run_info(tmp_path).fingerprint != read_run_info(run_dir).fingerprint


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"status": "lost"}'])
def test_a_scan_whose_result_is_damaged_has_failed_and_the_others_are_read(run_dir: Path, content: str) -> None:
    before = read_scores(run_dir)
    score_path(run_dir, "sub-01_T1w").write_text(content)
    after = {score.scan_id: score for score in read_scores(run_dir)}
    assert set(after) == {score.scan_id for score in before}
    damaged = after["sub-01_T1w"]
    assert (damaged.status, damaged.reason_code) == (ScanStatus.FAILED, "damaged_result")
    assert "run the same `anomaly score` again" in damaged.remedy
    with pytest.raises(DamagedFileError, match="run the same `anomaly score` again"):
        read_score(score_path(run_dir, "sub-01_T1w"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", b"not an archive"])
def test_damaged_volumes_are_named_with_a_remedy(run_dir: Path, content: bytes) -> None:
    volumes_path(run_dir, "sub-01_T1w").write_bytes(content)
    for read in (read_volumes, read_neighbours):
        with pytest.raises(DamagedFileError, match=r"is missing or damaged .*; run the same `anomaly score` again"):
            read(run_dir, "sub-01_T1w")


def test_volumes_with_a_flipped_bit_are_damaged(run_dir: Path) -> None:
    path = volumes_path(run_dir, "sub-01_T1w")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="damaged"):
        read_volumes(run_dir, "sub-01_T1w")


def test_missing_volumes_and_damaged_settings_are_named(run_dir: Path) -> None:
    volumes_path(run_dir, "sub-01_T1w").unlink()
    with pytest.raises(DamagedFileError, match="missing or damaged"):
        read_volumes(run_dir, "sub-01_T1w")
    (run_dir / "run.json").write_text("")
    with pytest.raises(DamagedFileError, match="it is empty; run the same `anomaly score` again"):
        read_run_info(run_dir)


def test_texts_that_were_escaped_in_a_table_are_read_as_they_were(tmp_path: Path) -> None:
    refused = ScanScore("=1+1", ScanStatus.REFUSED, subject="-2", reason="@found", source="+a/b.nii.gz")
    write_tables(tmp_path, [refused])
    assert "\t=" not in "\t" + (tmp_path / "scores.tsv").read_text(encoding="utf-8").replace("\n", "\t")
    (found,) = read_scores(tmp_path)
    assert (found.scan_id, found.subject, found.reason, found.source) == ("=1+1", "-2", "@found", "+a/b.nii.gz")
