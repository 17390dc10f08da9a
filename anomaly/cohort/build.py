"""Build a cohort: read, check, preprocess and record every scan once, in parallel, and resumable."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from anomaly.cohort.prepare import (
    PreparationSpec,
    ScanChain,
    chain_hash,
    hash_of_files,
    prepare,
    record_crash,
    remove_volumes,
)
from anomaly.cohort.record import RECORDS_FOLDER, ScanRecord, record_path
from anomaly.cohort.table import write_manifest
from anomaly.cohort.volumes import read_grid
from anomaly.cohort.workers import run_in_order
from anomaly.core.errors import CohortError, DamagedFileError
from anomaly.core.files import read_json, remove_orphans, write_json
from anomaly.core.results import ScanStatus
from anomaly.core.versions import versions
from anomaly.core.volume import Modality
from anomaly.io.discover import ScanSource
from anomaly.qc.checks import QcSettings

COHORT_JSON = "cohort.json"
_LIBRARIES = ("anomaly", "numpy", "nibabel", "pydicom", "simpleitk", "scipy")

_log = logging.getLogger(__name__)


def build_cohort(
    scans: Sequence[ScanSource],
    chain: ScanChain,
    folder: Path,
    *,
    jobs: int = 1,
    modality: Modality = Modality.UNKNOWN,
    qc: QcSettings | None = None,
) -> Generator[ScanRecord, None, None]:
    """Yield one record per scan, in the order of the scans, each as soon as it is known.

    Workers continue while the caller uses a record; they work at most ``2 · jobs`` scans ahead. The records do not
    depend on ``jobs``. A scan that an earlier build finished (same files, same chain, same checks) is not read
    again, so an interrupted build continues where it stopped. At the end, the manifest and ``cohort.json`` are
    written. They list only the scans of this call, so pass the scans of all sources together.

    Parameters
    ----------
    scans
        The scans that :func:`anomaly.io.discover.discover` found.
    chain
        The preprocessing chain; picklable.
    folder
        The cohort folder, new or from an earlier build.
    jobs
        Number of worker processes. With 0 the work is done in this process, and a crash ends it.
    modality
        The modality that the chain is for. Scans of another modality are refused; scans of unknown modality are
        taken to be of this one.
    qc
        Thresholds of the quality checks.

    Yields
    ------
    ScanRecord
        With status accepted, refused, failed or duplicate. The volume of an accepted scan is on disk.

    Raises
    ------
    OutputError
        The folder cannot be written. The records so far are kept.
    """
    spec = PreparationSpec(chain, folder, modality, qc or QcSettings())
    remove_orphans(folder)
    write_cohort_json(spec, [])
    known = _reusable_records(scans, spec)
    work = partial(prepare, spec=spec)
    todo = [scan for scan in scans if scan.scan_id not in known]
    on_crash = partial(record_crash, spec=spec)
    new_records = run_in_order(work, todo, on_crash, min(jobs, max(1, len(todo))))
    records: list[ScanRecord] = []
    first_with_content: dict[str, str] = {}
    try:
        for scan in scans:
            record = known.get(scan.scan_id) or next(new_records)
            records.append(_without_duplicate(record, first_with_content, folder))
            yield records[-1]
    finally:
        new_records.close()
    _warn_of_unlisted_records(folder, records)
    write_manifest(folder, records)
    write_cohort_json(spec, records)


def read_cohort(folder: Path) -> dict[str, Any]:
    """Read ``cohort.json``: chain settings and hash, modality, grid, library versions.

    Raises
    ------
    CohortError
        If there is no cohort.
    DamagedFileError
        If the file is damaged.
    """
    path = folder / COHORT_JSON
    if not path.is_file():
        raise CohortError(f"no cohort at {folder}: {COHORT_JSON} is missing; make one with `anomaly ingest`")
    remedy = "run the same `anomaly ingest` again: it keeps the scans that are prepared"
    values: dict[str, Any] = read_json(path, remedy)
    if not {"complete", "chain"} <= set(values):
        raise DamagedFileError(f"{path} is damaged: it names no chain; {remedy}")
    return values


def write_cohort_json(spec: PreparationSpec, records: Sequence[ScanRecord]) -> None:
    """Write ``cohort.json``: without records at the start of a build, and again at its end."""
    volume = next((r.volume for r in records if r.volume), "")
    grid = read_grid(spec.folder / volume) if volume else None
    counts = {status.value: sum(r.status is status for r in records) for status in ScanStatus}
    write_json(
        spec.folder / COHORT_JSON,
        {
            "complete": bool(records),
            "modality": spec.modality.value,
            "chain": spec.chain.settings.model_dump(mode="json"),
            "chain_hash": chain_hash(spec.chain),
            "qc": spec.qc.model_dump(mode="json"),
            "grid": {"shape": grid.shape, "affine": grid.affine.tolist()} if grid else None,
            "scans": {status: n for status, n in counts.items() if n},
            "versions": versions(_LIBRARIES),
        },
    )


def _reusable_records(scans: Sequence[ScanSource], spec: PreparationSpec) -> dict[str, ScanRecord]:
    """Return the records of an earlier build that are still current, with subject data from today's manifest."""
    found: dict[str, ScanRecord] = {}
    for scan in scans:
        path = record_path(spec.folder, scan.scan_id)
        if not path.is_file():
            continue
        initial, record = spec.initial_record(scan), _load(path)
        if record and record.input_hash == initial.input_hash and _is_current(record, found, spec.folder):
            found[scan.scan_id] = replace(
                record, subject=initial.subject, session=initial.session, group=initial.group, split=initial.split,
                age=initial.age, sex=initial.sex, source=initial.source, lesion_mask=initial.lesion_mask,
            )  # fmt: skip
    return found


def _load(path: Path) -> ScanRecord | None:
    try:
        return ScanRecord.load(path)
    except (DamagedFileError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_current(record: ScanRecord, current: dict[str, ScanRecord], folder: Path) -> bool:
    """Return whether the files of a record are whole; a failed scan is never current, so it is tried again."""
    if record.status is ScanStatus.ACCEPTED:
        found = hash_of_files([folder / record.volume, folder / record.mask])
        return found != "" and record.volume_hash in {"", found}
    if record.status is ScanStatus.DUPLICATE:
        original = current.get(record.duplicate_of)
        return original is not None and original.content_hash == record.content_hash and bool(original.volume)
    return record.status is ScanStatus.REFUSED


def _without_duplicate(record: ScanRecord, first_with_content: dict[str, str], folder: Path) -> ScanRecord:
    """Return the record; make it a duplicate if an earlier accepted scan has the same content."""
    if record.status is not ScanStatus.ACCEPTED:
        return record
    original = first_with_content.setdefault(record.content_hash, record.scan_id)
    if original == record.scan_id:
        return record
    reason = f"found the same content as {original}; expected each scan once"
    dropped = record.with_status(ScanStatus.DUPLICATE, "duplicate", reason, "nothing to do; the first one is kept")
    duplicate = replace(dropped, duplicate_of=original)
    duplicate.save(folder)
    remove_volumes(folder, record.scan_id)
    return duplicate


def _warn_of_unlisted_records(folder: Path, records: Sequence[ScanRecord]) -> None:
    listed = {record.scan_id for record in records}
    n_unlisted = sum(path.stem not in listed for path in (folder / RECORDS_FOLDER).glob("[!.]*.json"))
    if n_unlisted:
        _log.warning(
            "%d scans in %s are from other sources and are not in this manifest; name all sources together",
            n_unlisted, folder,
        )  # fmt: skip
