"""The manifest: one row per scan that was found, whatever became of it."""

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

__all__ = [
    "COLUMNS",
    "MANIFEST",
    "ScanRecord",
    "accepted",
    "read_manifest",
    "read_records",
    "validate",
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
COLUMNS: tuple[str, ...] = tuple(SCHEMA.names)


def write_manifest(folder: Path, records: Iterable[ScanRecord]) -> pd.DataFrame:
    """Write ``manifest.parquet`` and, for people, ``manifest.tsv``; return the table."""
    rows = [record.row() for record in records]
    with atomic_path(folder / MANIFEST) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    table = read_manifest(folder)
    with atomic_path(folder / "manifest.tsv") as temporary:
        _for_people(table).to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    return table


def read_manifest(folder: Path) -> pd.DataFrame:
    """Return the manifest of a cohort.

    Raises
    ------
    CohortError
        If there is none, or it lacks columns.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CohortError(f"no cohort at {folder}: {MANIFEST} is missing; make one with `anomaly ingest`")
    try:
        table = pd.DataFrame(pq.read_table(path).to_pylist(), columns=list(pq.read_schema(path).names))
    except (OSError, pa.ArrowException) as error:
        raise CohortError(f"{path} cannot be read: {error}; ingest again") from error
    validate(table, path)
    return table


def read_records(folder: Path) -> list[ScanRecord]:
    """Return the rows of a cohort's manifest as records."""
    rows = read_manifest(folder).to_dict("records")
    return [ScanRecord.from_row({str(key): value for key, value in row.items()}) for row in rows]


def validate(table: pd.DataFrame, where: Path) -> None:
    """Raise CohortError if a manifest lacks columns or names a scan twice."""
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise CohortError(f"{where} lacks the columns {', '.join(missing)}; ingest again with this version")
    twice = sorted(set(table.loc[table["scan_id"].duplicated(), "scan_id"]))
    if twice:
        raise CohortError(f"{where} names scans twice: {', '.join(twice[:5])}; ingest again")


def accepted(records: Sequence[ScanRecord]) -> list[ScanRecord]:
    """Return the records that have a volume."""
    return [record for record in records if record.status is ScanStatus.ACCEPTED]


def _for_people(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with lists as plain text."""
    plain = table.copy()
    for column in ("shape", "affine", "template_from_scan"):
        plain[column] = [" ".join(f"{v:g}" for v in values) for values in plain[column]]
    return plain
