"""Open scans for a model: raw ones are prepared by its own chain, ingested ones are checked for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.bundle.config import ModelConfig
from anomaly.cohort.build import build_cohort, read_cohort
from anomaly.cohort.table import ScanRecord, read_records
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.errors import CohortError, ConfigError
from anomaly.core.files import sha256_of_json
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.core.volume import Modality
from anomaly.inference.template_scan import TemplateScan
from anomaly.io.discover import discover
from anomaly.preprocessing.chain import Chain, ChainSettings
from pipelines.common import cores

NotScored = dict[str, str]
"""Id, status, reason and remedy of a scan without a score."""


@dataclass(frozen=True)
class PreparedScanRef:
    """A scan that was found, with any status, and the cohort folder that holds its volume if it was accepted."""

    record: ScanRecord
    folder: Path

    def load(self) -> TemplateScan:
        """Return an accepted scan, memory-mapped, with the warnings of its quality checks."""
        record = self.record
        voxels, mask = CohortVolumes(self.folder, [record])[0]
        return TemplateScan(
            scan_id=record.scan_id,
            voxels=voxels,
            mask=mask,
            geometry=record.geometry,
            template_from_scan=record.template_from_scan_matrix,
            covariates=record.covariates,
            numbers=record.numbers,
            warnings=record.warnings,
        )


@dataclass(frozen=True)
class ScanInput:
    """Prepared scans, one by one, in a fixed order; closing it stops the workers."""

    scans: Generator[PreparedScanRef, None, None]
    scan_ids: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of scans."""
        return len(self.scan_ids)

    def __iter__(self) -> Iterator[PreparedScanRef]:
        return self.scans

    def close(self) -> None:
        """Stop preparing scans."""
        self.scans.close()


def open_scans(
    sources: Sequence[Path],
    work: Path,
    config: ModelConfig,
    jobs: int,
    split: str | None = None,
    *,
    split_required: bool = False,
) -> ScanInput:
    """Open the scans of some sources for the model of a config.

    Parameters
    ----------
    sources
        Ingested cohorts (prepared by the same chain), raw scans, or both.
    work
        Where raw scans are prepared; what was prepared there before is used again.
    jobs
        Processes that prepare raw scans; 0 = one per core.
    split
        Only scans of this split; scans without a split are always included.
    split_required
        Whether at least one scan must name this split. Otherwise sources without any split are used whole.

    Raises
    ------
    ConfigError
        A cohort was prepared by another chain.
    CohortError
        Nothing was found, or no scan belongs to the split; the message lists the splits that are present.
    """
    cohorts = [path for path in sources if is_cohort(path)]
    all_ingested = [ref for cohort in cohorts for ref in _ingested(cohort, config)]
    all_raw = discover([path for path in sources if path not in cohorts])
    ingested = [ref for ref in all_ingested if _in_split(ref.record.split, split)]
    raw = [scan for scan in all_raw if _in_split(scan.split, split)]
    splits = [*(ref.record.split for ref in all_ingested), *(scan.split for scan in all_raw)]
    if not ingested + raw or (split_required and split is not None and split not in splits):
        raise CohortError(_no_such_split(sources, split, splits))

    def scans() -> Generator[PreparedScanRef, None, None]:
        yield from ingested
        if raw:
            chain = Chain(config.preprocessing)
            for record in build_cohort(raw, chain, work, jobs=jobs or cores(), modality=config.modality):
                yield PreparedScanRef(record, work)

    return ScanInput(scans(), (*(ref.record.scan_id for ref in ingested), *(scan.scan_id for scan in raw)))


def is_cohort(path: Path) -> bool:
    """Return whether a path is a folder that ``anomaly ingest`` wrote."""
    return (path / "cohort.json").is_file()


def check_chain(cohort: Path, config: ModelConfig) -> None:
    """Raise an error for a cohort that is not finished, or was prepared by another chain than the model's."""
    found = read_cohort(cohort)
    if not found["complete"]:
        raise CohortError(f"{cohort} is not finished; run the same `anomaly ingest` again, it continues")
    # A step that did not exist when the cohort was made has its default settings, which change nothing.
    prepared = ChainSettings().model_dump(mode="json") | found["chain"]
    expected = config.preprocessing.model_dump(mode="json")
    if sha256_of_json(prepared) != sha256_of_json(expected):
        keys = sorted(expected.keys() | prepared.keys())
        different = [key for key in keys if expected.get(key) != prepared.get(key)]
        raise ConfigError(
            f"{cohort} was prepared by another chain than this model's (different: {', '.join(different)}); "
            "ingest again with the model's preprocessing, or give the raw scans"
        )


def healthy_records(cohort: Path, config: ModelConfig, split: str) -> list[ScanRecord]:
    """Return the accepted healthy scans of a cohort that a step may use, by scan id.

    A cohort without groups is taken to be healthy; one without splits is used whole.

    Raises
    ------
    CohortError
        None are left.
    """
    check_chain(cohort, config)
    healthy = [r for r in read_records(cohort) if r.status is ScanStatus.ACCEPTED and r.group in {"", "healthy"}]
    if any(record.split for record in healthy):
        healthy = [record for record in healthy if record.split == split]
    of_modality = [r for r in healthy if r.modality in {config.modality.value, Modality.UNKNOWN.value}]
    if not of_modality:
        raise CohortError(
            f"{cohort}: no accepted healthy {config.modality.value} scan for split {split!r}; "
            f"{cohort / 'manifest.tsv'} says what was found and why scans were refused"
        )
    return sorted(of_modality, key=lambda record: record.scan_id)


def healthy_scans(
    scans: ScanInput, config: ModelConfig, split: str
) -> tuple[list[PreparedScanRef], list[NotScored]]:
    """Return the healthy scans that were accepted, and why others were not.

    Parameters
    ----------
    split
        The split that the scans were chosen by, for the message.

    Raises
    ------
    CohortError
        There are none.
    """
    accepted, not_accepted = [], []
    for scan in scans:
        record = scan.record
        if record.status is not ScanStatus.ACCEPTED:
            if record.status is not ScanStatus.DUPLICATE:
                not_accepted.append(not_scored_row(record.scan_id, record))
        elif record.group in {"", "healthy"}:
            if record.modality == Modality.T1W_CE and config.modality is Modality.T1W:
                not_accepted.append(_with_agent(record))
            else:
                accepted.append(scan)
    if not accepted:
        why = "".join(f"; refused {scan['scan_id']}: {scan['reason']}" for scan in not_accepted[:1])
        raise CohortError(
            f"found no accepted healthy {config.modality.value} scan of the split {split!r}, or of none"
            f"{why}; give held-out healthy scans of that modality"
        )
    return accepted, not_accepted


def _with_agent(record: ScanRecord) -> NotScored:
    """Return why a T1w scan with contrast agent is no reference for scans without."""
    reason = f"found a {record.modality} scan; expected a {Modality.T1W} scan"
    remedy = "give scans before contrast agent"
    return {"scan_id": record.scan_id, "status": ScanStatus.REFUSED.value, "reason": reason, "remedy": remedy}


def not_scored_row(scan_id: str, found: ScanRecord | ScanScore) -> NotScored:
    """Return why a scan has no score, for a summary."""
    return {"scan_id": scan_id, "status": found.status.value, "reason": found.reason, "remedy": found.remedy}


def _ingested(cohort: Path, config: ModelConfig) -> list[PreparedScanRef]:
    check_chain(cohort, config)
    return [PreparedScanRef(record, cohort) for record in read_records(cohort)]


def _no_such_split(sources: Sequence[Path], split: str | None, splits: Sequence[str]) -> str:
    """Return the message for sources of which no scan belongs to the split."""
    names = ", ".join(map(str, sources))
    counts = Counter(splits)
    unnamed = counts.pop("", 0)
    present = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    without = f"{unnamed} without a split" if unnamed else ""
    return (
        f"no scan of {names} belongs to split {split!r}; splits present: "
        f"{'; '.join(filter(None, (present, without))) or 'none'}; give one of them, or no split for all scans"
    )


def _in_split(split: str, chosen: str | None) -> bool:
    return chosen is None or split in {"", chosen}
