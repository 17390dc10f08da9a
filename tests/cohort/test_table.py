"""The manifest of a cohort: one row per scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly.cohort.record import ScanRecord
from anomaly.cohort.table import (
    COLUMNS,
    accepted,
    read_manifest,
    read_records,
    write_manifest,
)
from anomaly.core.errors import CohortError
from anomaly.core.results import ScanStatus

ACCEPTED = ScanRecord(
    scan_id="sub-01_T1w", status=ScanStatus.ACCEPTED, subject="sub-01", modality="T1w", group="healthy", age=34.5,
    sex="F", source="../a.nii.gz", content_hash="ab", volume="volumes/sub-01_T1w.nii", mask="masks/sub-01_T1w.nii",
    warnings=("few grey levels",), shape=(3, 4, 5), affine=tuple(np.diag([2.0, 2, 2, 1]).ravel()),
    template_from_scan=tuple(np.eye(4).ravel()), numbers={"overlap": 0.95},
)  # fmt: skip
REFUSED = ScanRecord("sub-02_T1w", ScanStatus.REFUSED, reason_code="not_3d", reason="found 4D", remedy="split it")


def test_records_written_to_the_manifest_are_read_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, [ACCEPTED, REFUSED])
    assert read_records(tmp_path) == [ACCEPTED, REFUSED]


def test_the_manifest_has_the_documented_columns_in_both_forms(tmp_path: Path) -> None:
    write_manifest(tmp_path, [ACCEPTED, REFUSED])
    assert list(read_manifest(tmp_path).columns) == list(COLUMNS)
    human_readable = pd.read_csv(tmp_path / "manifest.tsv", sep="\t")
    assert list(human_readable.columns) == list(COLUMNS)
    assert human_readable.loc[0, "shape"] == "3 4 5"


def test_an_empty_manifest_can_be_written_and_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, [])
    assert read_records(tmp_path) == []


def test_only_accepted_scans_have_a_volume() -> None:
    assert accepted([ACCEPTED, REFUSED]) == [ACCEPTED]


def test_a_missing_cohort_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="anomaly ingest"):
        read_manifest(tmp_path)


def test_a_manifest_that_lacks_columns_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"scan_id": ["a"]}), tmp_path / "manifest.parquet")
    with pytest.raises(CohortError, match="lacks the columns subject"):
        read_manifest(tmp_path)


def test_a_scan_listed_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="lists scans twice: sub-02_T1w"):
        write_manifest(tmp_path, [REFUSED, REFUSED])


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(CohortError, match="cannot be read"):
        read_manifest(tmp_path)
