"""Records of scans, in memory and on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from anomaly.cohort.record import ScanRecord, record_path
from anomaly.core.results import ScanStatus
from tests.cohort.test_table import ACCEPTED


def test_a_saved_record_is_read_back(tmp_path: Path) -> None:
    record = replace(ACCEPTED, input_hash="hash")
    record.save(tmp_path)
    assert ScanRecord.load(record_path(tmp_path, record.scan_id)) == record


def test_a_record_has_the_geometry_of_its_scan() -> None:
    assert ACCEPTED.geometry.spacing == (2, 2, 2)
    np.testing.assert_array_equal(ACCEPTED.template_from_scan_matrix, np.eye(4))


def test_a_record_written_by_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    path = record_path(tmp_path, "a")
    path.parent.mkdir()
    path.write_text('{"scan_id": "a", "status": "refused", "made_from": "hash"}')
    assert ScanRecord.load(path) == ScanRecord("a", ScanStatus.REFUSED, input_hash="hash")


def test_a_record_written_by_a_later_version_is_still_read(tmp_path: Path) -> None:
    path = record_path(tmp_path, "a")
    path.parent.mkdir()
    path.write_text('{"scan_id": "a", "status": "refused", "something_new": 1}')
    assert ScanRecord.load(path) == ScanRecord("a", ScanStatus.REFUSED)


def test_a_scan_that_is_not_accepted_has_no_volume() -> None:
    refused = ACCEPTED.with_status(ScanStatus.REFUSED, "code", "reason", "remedy")
    assert (refused.volume, refused.mask, refused.template_from_scan) == ("", "", ())
    assert (refused.subject, refused.content_hash) == (ACCEPTED.subject, ACCEPTED.content_hash)
