"""Results of a validation: measures of each model, their thresholds, and whether these are met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomaly.core.files import atomic_path, read_json_if_whole, write_json
from anomaly.evaluation.tables import MISSING_VALUE, as_json
from pipelines.validation.model_under_test import CheckResult
from pipelines.validation.settings import ValidationSettings
from pipelines.validation.thresholds import Threshold

MAX_ROWS_IN_TERMINAL = 12  # longer tables are in the report only

Rows = list[dict[str, str | float]]


@dataclass(frozen=True)
class StoredCheck:
    """What one check measured of a model, as stored in ``<check>.json`` of the model's folder.

    Parameters
    ----------
    check
        Name of the check.
    measures
        Name → number; one that is not finite is stored as null.
    images
        Title → file in the folder.
    tables
        Title → rows, each by column.
    notes
        Sentences for the report.
    seconds
        Time of the check, and of the training where the check was the first to need it.
    """

    check: str
    measures: Mapping[str, float]
    images: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Rows] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def write(cls, folder: Path, check: str, found: CheckResult, cache_key: str, seconds: float) -> StoredCheck:
        """Store what a check measured, with its images as PNG files, under its cache key."""
        images = {}
        for number, (title, png) in enumerate(found.images.items(), start=1):
            images[title] = f"{check}-{number:02d}.png"
            with atomic_path(folder / images[title]) as temporary:
                temporary.write_bytes(png)
        stored = cls(check, found.measures, images, found.tables, found.notes, seconds)
        write_json(folder / f"{check}.json", as_json(asdict(stored) | {"cache_key": cache_key}))
        return stored

    @classmethod
    def read(cls, folder: Path, check: str, cache_key: str) -> StoredCheck | None:
        """Return what was stored under this cache key; None where there is nothing, or an image is missing."""
        path = folder / f"{check}.json"
        values = read_json_if_whole(path) or {}
        if values.pop("cache_key", None) != cache_key:
            return None
        if any(not (folder / name).is_file() for name in values["images"].values()):
            return None
        values["measures"] = {n: math.nan if v is None else v for n, v in values["measures"].items()}
        return cls(**{**values, "notes": tuple(values["notes"])})


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model.

    Parameters
    ----------
    folder
        Folder of the model; its name is the model's.
    family
        Family of the model.
    checks
        What each check measured.
    problem
        Why a check failed with an error; "" if none did.
    """

    folder: Path
    family: str
    checks: tuple[StoredCheck, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.folder.name

    @property
    def measures(self) -> dict[str, float]:
        """``CHECK.MEASURE`` → number."""
        return {f"{c.check}.{name}": value for c in self.checks for name, value in c.measures.items()}

    @property
    def images(self) -> dict[str, str]:
        """Title → file in the folder."""
        return {title: name for c in self.checks for title, name in c.images.items()}

    @property
    def tables(self) -> dict[str, Rows]:
        """Title → rows, each by column."""
        return {title: rows for c in self.checks for title, rows in c.tables.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report."""
        return tuple(note for c in self.checks for note in c.notes)

    @property
    def seconds(self) -> float:
        """Time of training and checks."""
        return round(sum(c.seconds for c in self.checks), 1)


@dataclass(frozen=True)
class ThresholdResult:
    """A measured number and its threshold."""

    model: str
    measure: str
    value: float
    threshold: Threshold

    @property
    def met(self) -> bool:
        """Whether the number meets its threshold; NaN, which stands for no measurement, does not."""
        return self.threshold.is_met_by(self.value)


@dataclass(frozen=True)
class ValidationResult:
    """The result of a validation.

    Parameters
    ----------
    settings
        The task.
    source
        Where the images are from.
    classifier
        Accuracy of the reference classifier by attribute (``accuracy``), and the lowest that passes (``min``).
    results
        One per model.
    software, at
        Versions of the software, and when the result was made.
    """

    settings: ValidationSettings
    source: str
    classifier: Mapping[str, Any]
    results: tuple[ModelResult, ...]
    software: Mapping[str, str]
    at: str

    def threshold_results(self, result: ModelResult) -> list[ThresholdResult]:
        """Return the thresholds of a model with what was measured."""
        thresholds, measures = self.settings.models[result.name].thresholds, result.measures
        return [ThresholdResult(result.name, m, measures.get(m, math.nan), t) for m, t in thresholds.items()]

    def classifier_results(self) -> Iterator[ThresholdResult]:
        """Yield the accuracies of the classifier with their threshold: the measures depend on the classifier."""
        threshold = Threshold(min=self.classifier["min"])
        for name, accuracy in self.classifier["accuracy"].items():
            yield ThresholdResult("classifier", f"accuracy of {name}", accuracy, threshold)

    @property
    def failures(self) -> list[str]:
        """Errors and missed thresholds, a sentence each; empty if the validation passed."""
        rows = [*self.classifier_results(), *(row for r in self.results for row in self.threshold_results(r))]
        problems = [f"{result.name}: {result.problem}" for result in self.results if result.problem]
        missed = [f"{r.model}: {r.measure} is {r.value:.4g}, expected {r.threshold}" for r in rows if not r.met]
        return problems + missed

    @property
    def passed(self) -> bool:
        """Whether every threshold is met."""
        return not self.failures

    @property
    def not_run(self) -> list[str]:
        """Models of the task without a result."""
        return sorted(self.settings.models.keys() - {result.name for result in self.results})

    def as_text(self) -> str:
        """Return the result for a terminal: one line per model, short tables, then passed or failed."""
        lines = [f"{self.settings.name}: {self.source}"]
        for result in self.results:
            rows = self.threshold_results(result)
            met = f"{sum(row.met for row in rows)} of {len(rows)} thresholds met"
            lines.append(f"  {result.name:<24} {result.problem or met}")
        for result in self.results:
            for title, table in result.tables.items():
                if len(table) <= MAX_ROWS_IN_TERMINAL:
                    lines += ["", f"{result.name}: {title}", *(f"  {_as_line(row)}" for row in table)]
        return "\n".join([*lines, "", "passed" if self.passed else "failed"])

    def as_dict(self) -> dict[str, Any]:
        """Return the result for ``result.json``."""
        return {
            "task": self.settings.name,
            "result": "passed" if self.passed else "failed",
            "failures": self.failures,
            "not_run": self.not_run,
            "source": self.source,
            "classifier": dict(self.classifier),
            "models": {
                result.name: {
                    "family": result.family,
                    "seconds": result.seconds,
                    "measures": as_json(result.measures),
                    "tables": as_json(result.tables),
                }
                for result in self.results
            },
            "software": dict(self.software),
            "at": self.at,
        }


def stored_checks(folder: Path, cache_keys: Mapping[str, str]) -> Sequence[StoredCheck]:
    """Return what is stored of a model under these cache keys, check → key."""
    read = (StoredCheck.read(folder, check, key) for check, key in cache_keys.items())
    return [stored for stored in read if stored is not None]


def _as_line(row: Mapping[str, str | float]) -> str:
    return "  ".join(
        value if isinstance(value, str) else MISSING_VALUE if value is None else f"{value:.4g}"
        for value in row.values()
    )
