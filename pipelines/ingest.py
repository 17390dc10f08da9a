"""Make a cohort: find, check and preprocess scans, and report the status of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomaly.cohort.build import build_cohort
from anomaly.cohort.table import ScanRecord
from anomaly.core.errors import ConfigError, unknown_name
from anomaly.core.progress import Progress, no_progress
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Modality
from anomaly.io.discover import discover
from anomaly.preprocessing.chain import Chain, ChainSettings, load_chain_settings
from pipelines.common import audit, cores, find_config, shipped_configs


@dataclass(frozen=True)
class Reason:
    """Why one scan is not in the cohort."""

    scan_id: str
    status: str
    code: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class IngestSummary:
    """The number of scans of each status, and the reasons of those that were not accepted."""

    cohort: str
    accepted: int
    refused: int
    failed: int
    duplicates: int
    reasons: tuple[Reason, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as a dictionary of plain values."""
        return asdict(self)


def ingest(
    sources: Sequence[Path],
    output: Path,
    preprocessing: str | Path = "t1w",
    modality: str | Modality | None = None,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> IngestSummary:
    """Make a cohort of scans, or continue an earlier build.

    Parameters
    ----------
    sources
        Image files, folders, BIDS data sets, DICOM folders and zips, ``manifest.csv``, in any mix.
    output
        The cohort folder.
    preprocessing
        Name of a shipped preprocessing configuration, or a YAML file.
    modality
        Modality of scans for which neither name nor header gives one; that of the chain by default.
    jobs
        Number of processes; 0 for one per core.
    progress
        Called with (done, total, scan).

    Returns
    -------
    IngestSummary
        Number of scans by status, and the reasons of those that were not accepted.

    Raises
    ------
    ConfigError
        If the configuration is invalid, or the modality is unknown.
    InputError
        If a source does not exist, or no scan is found.
    OutputError
        If the cohort folder cannot be written.
    """
    settings = load_chain(preprocessing)
    expected = settings.modality
    assumed = _modality(modality) or expected
    scans = discover(sources, assumed)
    audit(output, "ingest", n_scans=len(scans))
    records: list[ScanRecord] = []
    progress(0, len(scans), "reading")
    found = build_cohort(scans, Chain(settings), output, jobs=jobs or cores(), modality=expected)
    with closing(found):  # an interrupt ends the workers
        for record in found:
            records.append(record)
            progress(len(records), len(scans), f"{record.status.value} {record.scan_id}")
    return summarise(output, records)


def load_chain(name_or_path: str | Path) -> ChainSettings:
    """Read the settings of a preprocessing chain, by the name of a shipped configuration or a path."""
    path = find_config(name_or_path, "preprocessing")
    return load_chain_settings(path, shipped_configs("preprocessing"))


def summarise(cohort: Path, records: Sequence[ScanRecord]) -> IngestSummary:
    """Count records by status and collect the reasons of those that were not accepted."""
    counts = {status: sum(record.status is status for record in records) for status in ScanStatus}
    not_accepted = [record for record in records if record.status is not ScanStatus.ACCEPTED]
    return IngestSummary(
        cohort=str(cohort),
        accepted=counts[ScanStatus.ACCEPTED],
        refused=counts[ScanStatus.REFUSED],
        failed=counts[ScanStatus.FAILED],
        duplicates=counts[ScanStatus.DUPLICATE],
        reasons=tuple(
            Reason(record.scan_id, record.status.value, record.reason_code, record.reason, record.remedy)
            for record in not_accepted
        ),
    )


def _modality(name: str | Modality | None) -> Modality | None:
    if name is None:
        return None
    known = {m.value.lower(): m for m in Modality}
    if name.lower() not in known:
        raise ConfigError(unknown_name("modality", name, [m.value for m in Modality]))
    return known[name.lower()]
