"""The manifest: one row per scan that was found, whatever became of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly.core.errors import CohortError
from anomaly.core.files import atomic_path, read_json, write_json
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Geometry

MANIFEST = "manifest.parquet"
RECORDS = "records"

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


@dataclass(frozen=True)
class ScanRecord:
    """One scan that was found: one row of the manifest, one file in ``records/``.

    Parameters
    ----------
    source
        Path relative to the cohort folder (``path#series`` for DICOM and zips).
    volume, mask
        Preprocessed volume and foreground mask, relative to the cohort folder; ``""`` unless accepted.
    lesion_mask
        Lesion mask in the scan's own space, relative to the cohort folder; for evaluation only.
    duplicate_of
        The ``scan_id`` with the same content that was kept.
    warnings
        Findings that do not refuse the scan.
    shape, affine
        The scan's own grid: 3 ints; 16 floats, row-major, voxel index → RAS+ mm.
    template_from_scan
        16 floats, row-major: scan RAS+ mm → template RAS+ mm.
    numbers
        Quality numbers and seconds per step.
    made_from
        Digest of the source files and of everything that was done to them; the record is reused while it is the
        same. Not part of the manifest.
    """

    scan_id: str
    status: ScanStatus
    subject: str = ""
    session: str = ""
    modality: str = ""
    group: str = ""
    split: str = ""
    age: float | None = None
    sex: str = ""
    source: str = ""
    content_hash: str = ""
    reason_code: str = ""
    reason: str = ""
    remedy: str = ""
    volume: str = ""
    mask: str = ""
    lesion_mask: str = ""
    duplicate_of: str = ""
    warnings: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    affine: tuple[float, ...] = ()
    template_from_scan: tuple[float, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    made_from: str = ""

    @property
    def geometry(self) -> Geometry:
        """The scan's own grid."""
        i, j, k = self.shape
        return Geometry((i, j, k), np.array(self.affine).reshape(4, 4))

    @property
    def template_from_scan_matrix(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """``(4, 4)``: scan RAS+ mm → template RAS+ mm."""
        return np.array(self.template_from_scan, dtype=np.float64).reshape(4, 4)

    def because(self, status: ScanStatus, code: str, reason: str, remedy: str) -> ScanRecord:
        """Return the record of the same scan with no volume, for a reason."""
        return replace(
            self, status=status, reason_code=code, reason=reason, remedy=remedy, volume="", mask="",
            template_from_scan=(),
        )  # fmt: skip

    def row(self) -> dict[str, Any]:
        """Return the manifest's row."""
        values = asdict(self)
        values["status"] = self.status.value
        values["warnings"] = json.dumps(list(self.warnings), ensure_ascii=False)
        values["numbers"] = json.dumps(dict(self.numbers), sort_keys=True)
        return {column: values[column] for column in COLUMNS}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the record of a manifest row."""
        values = dict(row)
        values["warnings"] = json.loads(values["warnings"])
        values["numbers"] = json.loads(values["numbers"])
        return cls._from_values(values)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return a record of ``records/``."""
        return cls._from_values(read_json(path))

    def save(self, folder: Path) -> None:
        """Write ``records/<scan_id>.json`` of a cohort folder, atomically."""
        write_json(record_path(folder, self.scan_id), asdict(self))

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        age = kept.get("age")
        kept["age"] = None if age is None or np.isnan(age) else float(age)
        kept["status"] = ScanStatus(kept["status"])
        kept["warnings"] = tuple(kept.get("warnings", ()))
        kept["shape"] = tuple(int(n) for n in kept.get("shape", ()))
        for name in ("affine", "template_from_scan"):
            kept[name] = tuple(float(v) for v in kept.get(name, ()))
        return cls(**kept)


def record_path(folder: Path, scan_id: str) -> Path:
    """Return where a cohort keeps the record of a scan."""
    return folder / RECORDS / f"{scan_id}.json"


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
