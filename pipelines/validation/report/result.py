"""What a validation has found: measures, bars, and whether they are met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomaly.core.files import read_json, write_json
from anomaly.evaluation.tables import NOTHING, as_json
from pipelines.validation.settings import ValidationSettings
from pipelines.validation.thresholds import Bar

LISTED = 12  # rows of a table that is short enough for a terminal


@dataclass(frozen=True)
class TrialResult:
    """What was found of one model.

    Parameters
    ----------
    folder
        Of the trial.
    family
        Of the model.
    measures
        ``exam.measure`` → number.
    pictures
        Title → file in the folder.
    tables
        Title → rows, each by column.
    notes
        Sentences for the page.
    seconds
        That training and exams took.
    problem
        Why it could not be examined; "" if it was.
    """

    folder: Path
    family: str
    measures: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, list[dict[str, str | float]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the trial."""
        return self.folder.name

    def write(self, fingerprint: str) -> None:
        """Keep the result in its folder; a number that is not finite is kept as null."""
        facts = asdict(self) | {"fingerprint": fingerprint}
        del facts["folder"]
        write_json(self.folder / "result.json", as_json(facts))

    @classmethod
    def read(cls, folder: Path, fingerprint: str) -> TrialResult | None:
        """Return the result that was kept in a folder under this fingerprint; None where there is none."""
        path = folder / "result.json"
        facts = read_json(path) if path.is_file() else {}
        if facts.pop("fingerprint", None) != fingerprint:
            return None
        if any(not (folder / name).is_file() for name in facts["pictures"].values()):
            return None
        facts["measures"] = {n: math.nan if v is None else v for n, v in facts["measures"].items()}
        return cls(folder, **{**facts, "notes": tuple(facts["notes"])})


@dataclass(frozen=True)
class Check:
    """A measured number and its bar."""

    trial: str
    measure: str
    found: float
    bar: Bar

    @property
    def met(self) -> bool:
        """Whether the number reaches its bar; what was not measured does not."""
        return self.bar.met_by(self.found)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a validation.

    Parameters
    ----------
    settings
        The task.
    source
        Where the pictures are from.
    classifier
        Its accuracy on test pictures by label, and the least that is asked.
    results
        One per trial.
    software, at
        Versions, and when.
    """

    settings: ValidationSettings
    source: str
    classifier: Mapping[str, Any]
    results: tuple[TrialResult, ...]
    software: Mapping[str, str]
    at: str

    def checks(self, result: TrialResult) -> list[Check]:
        """Return the bars of a trial and what was measured."""
        bars = self.settings.trials[result.name].bars
        return [Check(result.name, m, result.measures.get(m, math.nan), bar) for m, bar in bars.items()]

    def of_classifier(self) -> Iterator[Check]:
        """Yield the bars of the classifier: numbers that rest on a poor one mean nothing."""
        for name, accuracy in self.classifier["accuracy"].items():
            yield Check("classifier", f"accuracy of {name}", accuracy, Bar(least=self.classifier["least"]))

    @property
    def failures(self) -> list[str]:
        """What went wrong, a sentence each; empty if everything passed."""
        checks = [*self.of_classifier(), *(check for r in self.results for check in self.checks(r))]
        problems = [f"{result.name}: {result.problem}" for result in self.results if result.problem]
        missed = [f"{c.trial}: {c.measure} is {c.found:.4g}, expected {c.bar}" for c in checks if not c.met]
        return problems + missed

    @property
    def passed(self) -> bool:
        """Whether every bar is met."""
        return not self.failures

    @property
    def not_run(self) -> list[str]:
        """Trials of the task of which nothing is known."""
        return sorted(self.settings.trials.keys() - {result.name for result in self.results})

    def as_text(self) -> str:
        """Return the outcome for a terminal: one line per trial, then what trials list, then the verdict."""
        lines = [f"{self.settings.name}: {self.source}"]
        for result in self.results:
            checks = self.checks(result)
            met = f"{sum(check.met for check in checks)} of {len(checks)} bars met"
            lines.append(f"  {result.name:<24} {result.problem or met}")
        for result in self.results:
            for title, rows in result.tables.items():
                if len(rows) <= LISTED:
                    lines += ["", f"{result.name}: {title}", *(f"  {_row(row)}" for row in rows)]
        return "\n".join([*lines, "", "passed" if self.passed else "failed"])

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome for ``result.json``."""
        return {
            "task": self.settings.name,
            "verdict": "passed" if self.passed else "failed",
            "failures": self.failures,
            "not_run": self.not_run,
            "source": self.source,
            "classifier": dict(self.classifier),
            "trials": {
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


def _row(row: Mapping[str, str | float]) -> str:
    return "  ".join(
        value if isinstance(value, str) else NOTHING if value is None else f"{value:.4g}" for value in row.values()
    )
