from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomaly.cohort.table import ScanRecord
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.score_store import ScoreStore
from pipelines.scan_input import PreparedScanRef
from pipelines.scan_names import with_distinct_names

SCAN = ScanRecord("sub-1_T1w", ScanStatus.ACCEPTED, source="a/t1.nii.gz", content_hash="a" * 64)
OTHER = replace(SCAN, source="b/t1.nii.gz", content_hash="b" * 64)
UNREADABLE = replace(SCAN, status=ScanStatus.REFUSED, content_hash="")


def named(folder: Path, *records: ScanRecord, calibration_id: str = "cal-1") -> list[ScanRecord]:
    scans = [PreparedScanRef(record, folder) for record in records]
    return [scan.record for scan in with_distinct_names(scans, ScoreStore(folder), "model", calibration_id)]


def save(folder: Path, record: ScanRecord, status: ScanStatus = ScanStatus.SCORED) -> None:
    result = ScanScore(
        record.scan_id, status, source=record.source, content_hash=record.content_hash, model_id="model",
        calibration_id="cal-1",
    )  # fmt: skip
    ScoreStore(folder).save(result, "key")


def test_names_that_differ_stay_as_they_are(tmp_path: Path) -> None:
    records = [SCAN, replace(OTHER, scan_id="sub-2_T1w")]
    assert named(tmp_path, *records) == records


def test_the_second_of_two_scans_with_one_name_gets_a_longer_one_and_a_warning(tmp_path: Path) -> None:
    first, second = named(tmp_path, SCAN, OTHER)
    assert (first, second.scan_id) == (SCAN, "sub-1_T1w_bbbbbbbb")
    assert second.warnings == (
        "named sub-1_T1w_bbbbbbbb, because another scan of this run is named sub-1_T1w; check whose scan it is",
    )


def test_a_scan_that_is_given_twice_is_scored_once(tmp_path: Path) -> None:
    assert named(tmp_path, SCAN, OTHER, SCAN, OTHER) == named(tmp_path, SCAN, OTHER)


def test_two_scans_that_cannot_be_read_are_told_apart_by_their_source(tmp_path: Path) -> None:
    first, second = named(tmp_path, UNREADABLE, replace(UNREADABLE, source="b/t1.nii.gz"))
    assert first == UNREADABLE
    assert second.scan_id.startswith("sub-1_T1w_")
    assert named(tmp_path, UNREADABLE, UNREADABLE) == [UNREADABLE]


@pytest.mark.parametrize("new", [OTHER, replace(OTHER, source=SCAN.source), UNREADABLE])
def test_an_earlier_score_of_another_content_keeps_its_name(tmp_path: Path, new: ScanRecord) -> None:
    save(tmp_path, SCAN)
    assert named(tmp_path, SCAN) == [SCAN]
    (found,) = named(tmp_path, new)
    assert found.scan_id != SCAN.scan_id


def test_a_corrected_file_replaces_the_refusal_of_its_source(tmp_path: Path) -> None:
    save(tmp_path, UNREADABLE, ScanStatus.REFUSED)
    assert named(tmp_path, SCAN) == [SCAN]
    assert named(tmp_path, OTHER) != [OTHER]


def test_a_result_of_another_calibration_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, SCAN)
    assert named(tmp_path, OTHER, calibration_id="cal-2") == [OTHER]
