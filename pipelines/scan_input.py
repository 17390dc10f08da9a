"""Scans on their way to a model: raw ones go through its own chain, ingested ones are checked for it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.bundle.config import ModelConfig
from anomaly.cohort.build import build_cohort, read_cohort
from anomaly.cohort.table import ScanRecord, read_records
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.errors import CohortError, ConfigError
from anomaly.core.files import sha256_of_json
from anomaly.core.results import ScanStatus
from anomaly.core.volume import FloatArray, MaskArray, Modality
from anomaly.io.discover import discover
from anomaly.preprocessing.chain import Chain
from pipelines.common import cores


@dataclass(frozen=True)
class Arrival:
    """One scan that was found, whatever became of it, and the cohort folder that holds its volume."""

    record: ScanRecord
    folder: Path

    def load(self) -> tuple[FloatArray, MaskArray]:
        """Return the preprocessed voxels and mask ``(I, J, K)`` of an accepted scan."""
        return CohortVolumes(self.folder, [self.record])[0]


@dataclass(frozen=True)
class Intake:
    """Scans, one by one, in a fixed order; closing it stops the workers."""

    arrivals: Generator[Arrival, None, None]
    total: int

    def __iter__(self) -> Iterator[Arrival]:
        return self.arrivals

    def close(self) -> None:
        """Stop preparing scans."""
        self.arrivals.close()


def open_intake(
    sources: Sequence[Path], work: Path, config: ModelConfig, jobs: int, split: str | None = None
) -> Intake:
    """Open the scans of some sources for the model of a config.

    Parameters
    ----------
    sources
        Ingested cohorts (prepared by the same chain), raw scans, or both.
    work
        Where raw scans are prepared; what is there already is not prepared again.
    jobs
        Processes that prepare raw scans; 0 = one per core.
    split
        Only scans of this split; scans without a split are always in.

    Raises
    ------
    ConfigError
        A cohort was prepared by another chain.
    CohortError
        Nothing was found.
    """
    cohorts = [path for path in sources if is_cohort(path)]
    ingested = [a for cohort in cohorts for a in _ingested(cohort, config) if _wanted(a.record.split, split)]
    scans = [s for s in discover([p for p in sources if p not in cohorts]) if _wanted(s.split, split)]
    total = len(ingested) + len(scans)
    if total == 0:
        raise CohortError(f"no scan of {', '.join(map(str, sources))} belongs to split {split!r}; see its manifest")

    def arrivals() -> Generator[Arrival, None, None]:
        yield from ingested
        if scans:
            chain = Chain(config.preprocessing)
            for record in build_cohort(scans, chain, work, jobs=jobs or cores(), modality=config.modality):
                yield Arrival(record, work)

    return Intake(arrivals(), total)


def is_cohort(path: Path) -> bool:
    """Return whether a path is a folder that ingest made."""
    return (path / "cohort.json").is_file()


def check_chain(cohort: Path, config: ModelConfig) -> None:
    """Raise an error for a cohort that is not finished, or was prepared by another chain than the model's."""
    found = read_cohort(cohort)
    if not found["complete"]:
        raise CohortError(f"{cohort} is not finished; run the same `anomaly ingest` again, it continues")
    prepared = found["chain"]
    wanted = config.preprocessing.model_dump(mode="json")
    if sha256_of_json(prepared) != sha256_of_json(wanted):
        different = sorted(key for key in wanted.keys() | prepared.keys() if wanted.get(key) != prepared.get(key))
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
    fitting = [r for r in healthy if r.modality in {config.modality.value, Modality.UNKNOWN.value}]
    if not fitting:
        raise CohortError(
            f"{cohort}: no accepted healthy {config.modality.value} scan for split {split!r}; "
            f"{cohort / 'manifest.tsv'} says what was found and why scans were refused"
        )
    return sorted(fitting, key=lambda record: record.scan_id)


def _ingested(cohort: Path, config: ModelConfig) -> list[Arrival]:
    check_chain(cohort, config)
    return [Arrival(record, cohort) for record in read_records(cohort)]


def _wanted(split: str, wanted: str | None) -> bool:
    return wanted is None or split in {"", wanted}
