"""Scans → cohort: find them, check them, prepare them, and say what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomaly.cohort.build import build_cohort
from anomaly.cohort.table import ScanRecord
from anomaly.core.config import load_yaml
from anomaly.core.errors import ConfigError, unknown_name
from anomaly.core.progress import Progress, no_progress
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Modality
from anomaly.io.discover import discover
from anomaly.preprocessing.chain import Chain, ChainSettings
from pipelines.common import audit, cores, find_config


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
    """What became of the scans: a count for each status, and the reasons of those left out."""

    cohort: str
    accepted: int
    refused: int
    failed: int
    duplicates: int
    reasons: tuple[Reason, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain values."""
        return asdict(self)


def ingest(
    sources: Sequence[Path],
    output: Path,
    preprocessing: str | Path = "t1w",
    modality: str | Modality | None = None,
    jobs: int = 0,
    progress: Progress = no_progress,
) -> IngestSummary:
    """Make a cohort of scans, or continue one.

    Parameters
    ----------
    sources
        NIfTI files, folders, BIDS data sets, DICOM folders and zips, ``manifest.csv``, in any mix.
    output
        The cohort folder.
    preprocessing
        A shipped chain by name, or a YAML file.
    modality
        What scans are whose modality neither name nor header tells; the chain's modality by default.
    jobs
        Processes; 0 = one per core.
    progress
        Called with (done, total, scan).

    Raises
    ------
    ConfigError
        The chain's configuration is wrong, or the modality is unknown.
    InputError
        A source does not exist, or no scan is found.
    """
    settings = load_chain(preprocessing)
    expected = settings.modality
    assumed = _modality(modality) or expected
    scans = discover(sources, assumed)
    output.mkdir(parents=True, exist_ok=True)
    audit(output, "ingest", n_scans=len(scans))
    records: list[ScanRecord] = []
    progress(0, len(scans), "reading")
    for record in build_cohort(scans, Chain(settings), output, jobs=jobs or cores(), modality=expected):
        records.append(record)
        progress(len(records), len(scans), f"{record.status.value} {record.scan_id}")
    return summarise(output, records)


def load_chain(name_or_path: str | Path) -> ChainSettings:
    """Return the settings of a preprocessing chain given by a shipped name or a path."""
    path = find_config(name_or_path, "preprocessing")
    return ChainSettings.parse(load_yaml(path), where=str(path))


def summarise(cohort: Path, records: Sequence[ScanRecord]) -> IngestSummary:
    """Return the counts and reasons of an ingest."""
    counts = {status: sum(record.status is status for record in records) for status in ScanStatus}
    left_out = [record for record in records if record.status is not ScanStatus.ACCEPTED]
    return IngestSummary(
        cohort=str(cohort),
        accepted=counts[ScanStatus.ACCEPTED],
        refused=counts[ScanStatus.REFUSED],
        failed=counts[ScanStatus.FAILED],
        duplicates=counts[ScanStatus.DUPLICATE],
        reasons=tuple(
            Reason(record.scan_id, record.status.value, record.reason_code, record.reason, record.remedy)
            for record in left_out
        ),
    )


def _modality(name: str | Modality | None) -> Modality | None:
    if name is None:
        return None
    known = {m.value.lower(): m for m in Modality}
    if name.lower() not in known:
        raise ConfigError(unknown_name("modality", name, [m.value for m in Modality]))
    return known[name.lower()]
