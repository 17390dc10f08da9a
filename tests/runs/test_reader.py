from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.errors import InputError
from anomaly.core.files import read_json, write_json
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.reader import RunInfo, read_run_info, read_scores
from anomaly.runs.tables import write_tables
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


def test_texts_that_were_escaped_in_a_table_are_read_as_they_were(tmp_path: Path) -> None:
    refused = ScanScore("=1+1", ScanStatus.REFUSED, subject="-2", reason="@found", source="+a/b.nii.gz")
    write_tables(tmp_path, [refused])
    assert "\t=" not in "\t" + (tmp_path / "scores.tsv").read_text(encoding="utf-8").replace("\n", "\t")
    (found,) = read_scores(tmp_path)
    assert (found.scan_id, found.subject, found.reason, found.source) == ("=1+1", "-2", "@found", "+a/b.nii.gz")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "lost"}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a" / "score.json"
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"a/score\.json holds no result of a scan .*delete it and score again"):
        read_scores(tmp_path)
