"""Scans → cohort: each one read once, checked, preprocessed and recorded, over all cores, resumable."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from anomaly.cohort.prepare import PreparationSpec, ScanChain, chain_hash, lost, prepare, remove_volumes
from anomaly.cohort.record import RECORDS, ScanRecord, record_path
from anomaly.cohort.table import write_manifest
from anomaly.cohort.volumes import read_grid
from anomaly.cohort.workers import run_in_order
from anomaly.core.errors import CohortError
from anomaly.core.files import read_json, write_json
from anomaly.core.results import ScanStatus
from anomaly.core.versions import versions
from anomaly.core.volume import Modality
from anomaly.io.discover import ScanSource
from anomaly.qc.checks import QcSettings

COHORT = "cohort.json"
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
) -> Iterator[ScanRecord]:
    """Yield one record per scan, in the order of the scans, each as soon as it is known.

    Workers go on while the consumer uses a record, a bounded number of scans ahead. The records do not depend on
    ``jobs``. A scan that was done before (same files, same chain, same checks) is not read again, so an
    interrupted build continues where it stopped. When all are done the manifest and ``cohort.json`` are written;
    they speak of the scans given here, so name all sources together.

    Parameters
    ----------
    scans
        What ``io.discover.discover`` found.
    chain
        The preprocessing chain; picklable.
    folder
        The cohort to make or to continue.
    jobs
        Worker processes; 0 works in this process (a crash is then a crash).
    modality
        What the chain is for: any other is refused, and what does not say is taken for it.
    qc
        Thresholds of the quality checks.

    Yields
    ------
    ScanRecord
        With status accepted, refused, failed or duplicate; its volume is on disk.
    """
    recipe = PreparationSpec(chain, folder, modality, qc or QcSettings())
    _remove_unfinished(folder)
    describe_cohort(recipe, [])
    known = _reusable(scans, recipe)
    work = partial(prepare, recipe=recipe)
    todo = [scan for scan in scans if scan.scan_id not in known]
    fresh = run_in_order(work, todo, lambda scan, why: lost(scan, recipe, why), min(jobs, max(1, len(todo))))
    records: list[ScanRecord] = []
    kept: dict[str, str] = {}
    try:
        for scan in scans:
            record = known.get(scan.scan_id) or next(fresh)
            records.append(_once(record, kept, folder))
            yield records[-1]
    finally:
        fresh.close()
    _warn_of_others(folder, records)
    write_manifest(folder, records)
    describe_cohort(recipe, records)


def read_cohort(folder: Path) -> dict[str, Any]:
    """Return ``cohort.json``: chain settings and hash, modality, grid, versions.

    Raises
    ------
    CohortError
        If there is no finished cohort.
    """
    path = folder / COHORT
    if not path.is_file():
        raise CohortError(f"no cohort at {folder}: {COHORT} is missing; make one with `anomaly ingest`")
    values: dict[str, Any] = read_json(path)
    return values


def describe_cohort(recipe: PreparationSpec, records: Sequence[ScanRecord]) -> None:
    """Write ``cohort.json``; at the start of a build without records, and again when all are known."""
    volume = next((r.volume for r in records if r.volume), "")
    grid = read_grid(recipe.folder / volume) if volume else None
    counts = {status.value: sum(r.status is status for r in records) for status in ScanStatus}
    write_json(
        recipe.folder / COHORT,
        {
            "complete": bool(records),
            "modality": recipe.modality.value,
            "chain": recipe.chain.settings.model_dump(mode="json"),
            "chain_hash": chain_hash(recipe.chain),
            "qc": recipe.qc.model_dump(mode="json"),
            "grid": {"shape": grid.shape, "affine": grid.affine.tolist()} if grid else None,
            "scans": {status: n for status, n in counts.items() if n},
            "versions": versions(_LIBRARIES),
        },
    )


def _remove_unfinished(folder: Path) -> None:
    """Remove the files that a killed process had not finished (``core.files.atomic_path`` names them)."""
    for path in folder.glob("*/.*.partial.*"):
        path.unlink(missing_ok=True)


def _reusable(scans: Sequence[ScanSource], recipe: PreparationSpec) -> dict[str, ScanRecord]:
    """Return the records of an earlier build that still hold, with what a manifest says of them now."""
    found: dict[str, ScanRecord] = {}
    for scan in scans:
        path = record_path(recipe.folder, scan.scan_id)
        if not path.is_file():
            continue
        blank, record = recipe.blank(scan), _load(path)
        if record is not None and record.input_hash == blank.input_hash and _holds(record, found, recipe.folder):
            found[scan.scan_id] = replace(
                record, subject=blank.subject, session=blank.session, group=blank.group, split=blank.split,
                age=blank.age, sex=blank.sex, source=blank.source, lesion_mask=blank.lesion_mask,
            )  # fmt: skip
    return found


def _load(path: Path) -> ScanRecord | None:
    try:
        return ScanRecord.load(path)
    except (ValueError, KeyError, TypeError):
        return None


def _holds(record: ScanRecord, before: dict[str, ScanRecord], folder: Path) -> bool:
    if record.status is ScanStatus.ACCEPTED:
        return (folder / record.volume).is_file() and (folder / record.mask).is_file()
    if record.status is ScanStatus.DUPLICATE:
        twin = before.get(record.duplicate_of)
        return twin is not None and twin.content_hash == record.content_hash and bool(twin.volume)
    return record.status is ScanStatus.REFUSED


def _once(record: ScanRecord, kept: dict[str, str], folder: Path) -> ScanRecord:
    """Return the record, turned into a duplicate if an accepted scan before it has the same content."""
    if record.status is not ScanStatus.ACCEPTED:
        return record
    twin = kept.setdefault(record.content_hash, record.scan_id)
    if twin == record.scan_id:
        return record
    reason = f"found the same content as {twin}; expected each scan once"
    dropped = record.because(ScanStatus.DUPLICATE, "duplicate", reason, "nothing to do; the first one is kept")
    duplicate = replace(dropped, duplicate_of=twin)
    duplicate.save(folder)
    remove_volumes(folder, record.scan_id)
    return duplicate


def _warn_of_others(folder: Path, records: Sequence[ScanRecord]) -> None:
    named = {record.scan_id for record in records}
    others = sum(path.stem not in named for path in (folder / RECORDS).glob("*.json"))
    if others:
        _log.warning(
            "%d scans in %s are from other sources and are not in this manifest; name all sources together",
            others, folder,
        )  # fmt: skip
