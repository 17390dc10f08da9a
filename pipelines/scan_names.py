"""Give every scan of a run a name of its own, so that no result replaces that of another scan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from anomaly.cohort.table import ScanRecord
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.score_store import ScoreStore
from pipelines.scan_input import PreparedScanRef

DIGITS = 8  # hex digits that tell two scans of one name apart


def with_distinct_names(
    scans: Iterable[PreparedScanRef], store: ScoreStore, model_id: str, calibration_id: str
) -> Iterator[PreparedScanRef]:
    """Yield the scans; one whose name another scan of the run has gets a longer name and a warning.

    A scan that is given twice is yielded once.

    Parameters
    ----------
    store
        The results of the run so far.
    model_id, calibration_id
        Of the run. Results of another model or calibration are replaced.
    """
    named: dict[str, ScanRecord] = {}
    for scan in scans:
        record, first = scan.record, named.get(scan.record.scan_id)
        before = None if first else store.read(record.scan_id)
        if before is not None and (before.model_id, before.calibration_id) != (model_id, calibration_id):
            before = None
        if (first and not _same_scan(record, first)) or (before and _is_kept(before, record)):
            record = _renamed(record)
        if record.scan_id in named:
            continue
        named[record.scan_id] = record
        yield replace(scan, record=record)


def _same_scan(record: ScanRecord, other: ScanRecord | ScanScore) -> bool:
    """Return whether two records are of one scan: by content, or by source where a content is unknown."""
    if record.content_hash and other.content_hash:
        return record.content_hash == other.content_hash
    return record.source == other.source


def _is_kept(before: ScanScore, record: ScanRecord) -> bool:
    """Return whether an earlier result is of another scan than ``record``.

    A result without a score is replaced by the scan from the same source, whose file has then been corrected.
    """
    if before.status is ScanStatus.SCORED:
        return before.content_hash != record.content_hash
    return before.source != record.source and not _same_scan(record, before)


def _renamed(record: ScanRecord) -> ScanRecord:
    digest = record.content_hash or hashlib.sha256(record.source.encode()).hexdigest()
    name = f"{record.scan_id}_{digest[:DIGITS]}"
    warning = f"named {name}, because another scan of this run is named {record.scan_id}; check whose scan it is"
    return replace(record, scan_id=name, warnings=(*record.warnings, warning))
