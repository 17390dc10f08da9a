"""The manifest of a cohort: one row per scan, whether accepted or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly.cohort.record import ScanRecord
from anomaly.core.errors import CohortError
from anomaly.core.files import atomic_path
from anomaly.core.results import ScanStatus
from anomaly.core.tsv import write_table

__all__ = [
    "COLUMNS",
    "MANIFEST",
    "ScanRecord",
    "accepted",
    "check_manifest",
    "read_manifest",
    "read_records",
    "write_manifest",
]

MANIFEST = "manifest.parquet"

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("scan_id", "subject", "session", "modality", "group", "split")),
        ("age", pa.float64()),
        *((name, pa.string()) for name in (
            "sex", "source", "content_hash", "status", "reason_code", "reason", "remedy", "volume", "mask",
            "lesion_mask", "duplicate_of", "warnings",
        )),
        ("shape", pa.list_(pa.int64())),
        ("affine", pa.list_(pa.float64())),
        ("template_from_scan", pa.list_(pa.float64())),
        ("numbers", pa.string()),
    ]
)  # fmt: skip
NUMBER_LISTS = ("shape", "affine", "template_from_scan")
COLUMNS: tuple[str, ...] = tuple(SCHEMA.names)


def write_manifest(folder: Path, records: Iterable[ScanRecord]) -> pd.DataFrame:
    """Write ``manifest.parquet`` and a human-readable copy, ``manifest.tsv``; return the table."""
    rows = [record.row() for record in records]
    with atomic_path(folder / MANIFEST) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    table = read_manifest(folder)
    write_table(_with_plain_lists(table), folder / "manifest.tsv", number_lists=NUMBER_LISTS, na_rep="n/a")
    return table


def read_manifest(folder: Path) -> pd.DataFrame:
    """Read the manifest of a cohort.

    Raises
    ------
    CohortError
        If the file is missing or damaged, lacks columns, or lists a scan twice.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CohortError(f"no cohort at {folder}: {MANIFEST} is missing; make one with `anomaly ingest`")
    try:
        table = pd.DataFrame(pq.read_table(path).to_pylist(), columns=list(pq.read_schema(path).names))
    except (OSError, pa.ArrowException) as error:
        raise CohortError(f"{path} cannot be read: {error}; ingest again") from error
    check_manifest(table, path)
    return table


def read_records(folder: Path) -> list[ScanRecord]:
    """Read the manifest of a cohort as records."""
    rows = read_manifest(folder).to_dict("records")
    return [ScanRecord.from_row({str(key): value for key, value in row.items()}) for row in rows]


def check_manifest(table: pd.DataFrame, where: Path) -> None:
    """Raise CohortError if a manifest lacks columns or lists a scan twice."""
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise CohortError(f"{where} lacks the columns {', '.join(missing)}; ingest again with this version")
    duplicates = sorted(set(table.loc[table["scan_id"].duplicated(), "scan_id"]))
    if duplicates:
        raise CohortError(f"{where} lists scans twice: {', '.join(duplicates[:5])}; ingest again")


def accepted(records: Sequence[ScanRecord]) -> list[ScanRecord]:
    """Return the records of accepted scans, which have a volume."""
    return [record for record in records if record.status is ScanStatus.ACCEPTED]


def _with_plain_lists(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with lists written as numbers separated by spaces."""
    plain = table.copy()
    for column in NUMBER_LISTS:
        plain[column] = [" ".join(f"{v:g}" for v in values) for values in plain[column]]
    return plain
