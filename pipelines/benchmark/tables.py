"""The tables of a benchmark: every model on the same scans, differences paired over subjects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from anomaly.core.files import write_json, write_text
from anomaly.evaluation.bootstrap import Estimate
from anomaly.evaluation.compare import Comparison, compare
from anomaly.evaluation.tables import MISSING_VALUE, as_json, cell, markdown

METRICS = {
    "voxel_average_precision": "voxel AP",
    "oracle_dice_per_scan": "best Dice (oracle, per scan)",
    "oracle_dice_one_threshold": "best Dice (oracle, one threshold)",
    "dice": "Dice at the calibrated threshold",
    "auroc": "scan AUROC",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
}
COMPARED_METRICS = ("voxel_average_precision", "oracle_dice_one_threshold", "auroc")
TITLES = {
    "dark": "Planted dark lesions (15 to 50 % signal loss)",
    "bright": "Planted bright lesions (15 to 50 % signal gain)",
    "texture": "Planted iso-intense texture",
    "mass_effect": "Planted mass effect (deformation)",
    "multifocal": "Planted foci, as of multiple sclerosis (several of 0.05 to 1 ml)",
    "tumour": "Planted tumours (core, rim and oedema, with mass effect)",
    "haemorrhage": "Planted haemorrhages in the brain (50 to 90 HU)",
    "subdural": "Planted subdural haematomas (50 to 90 HU)",
    "cases": "Real cases (sanity check: too few for a claim, and from other scanners)",
}


@dataclass(frozen=True)
class Measurement:
    """A measured figure and the limit that it should not exceed or fall below."""

    name: str
    value: str
    limit: str = ""


def measurement_table(measurements: Iterable[Measurement]) -> str:
    """Return measured figures as a Markdown table."""
    rows = [{"what": m.name, "measured": m.value, "limit": m.limit} for m in measurements]
    return markdown(pd.DataFrame(rows))


@dataclass(frozen=True)
class Entry:
    """One row of the tables: a model, or the trainings of one model from several seeds.

    Parameters
    ----------
    models
        Names of its bundles.
    """

    name: str
    models: tuple[str, ...]
    kind: Literal["family", "baseline", "ensemble"] = "family"


@dataclass(frozen=True)
class Pairing:
    """The difference of two models on one kind of lesion by one metric; positive = the first is better."""

    kind: str
    metric: str
    first: str
    second: str
    roles: tuple[str, str]
    difference: Estimate


class Results:
    """The results of a benchmark, added model by model.

    Parameters
    ----------
    name
        Name of the benchmark.
    entries
        The rows of its tables.
    measured_on
        The data and the numbers of scans.
    """

    def __init__(self, name: str, entries: Sequence[Entry], measured_on: Mapping[str, Any]):
        self.name = name
        self.entries = tuple(entries)
        self.measured_on = dict(measured_on)
        self.model_info: dict[str, dict[str, Any]] = {}
        self.per_scan: dict[str, dict[str, pd.DataFrame]] = {}
        self.fpr_checks: dict[str, list[dict[str, Any]]] = {}

    def add_model(self, model: str, metadata: Mapping[str, Any], scoring: Mapping[str, float | None]) -> None:
        """Add what a model is and its cost; ``scoring`` holds ``seconds_per_scan`` and ``passes_per_image``."""
        training = metadata["training"]
        self.model_info[model] = {
            "family": metadata["family"],
            "members": list(metadata.get("members", ())),
            "parameters": training["n_parameters"],
            "steps": training["steps"],
            "training_minutes": training["seconds"] / 60,
            "model_id": metadata["model_id"],
            **scoring,
        }

    def add(self, model: str, kind: str, per_scan: pd.DataFrame, fpr_checks: Sequence[dict[str, Any]]) -> None:
        """Add the evaluation of a model on one kind of lesion."""
        self.per_scan.setdefault(kind, {})[model] = per_scan
        self.fpr_checks[model] = list(fpr_checks)

    def comparisons(self) -> dict[str, Comparison]:
        """Compare all entries, for each kind of lesion on the scans that all of them scored."""
        return {
            kind: compare({entry.name: [tables[model] for model in entry.models] for entry in self.entries})
            for kind, tables in self.per_scan.items()
        }

    def pairings(self, comparisons: Mapping[str, Comparison]) -> list[Pairing]:
        """Compare the best family with the best baseline, and each ensemble with the best single model."""
        return [
            Pairing(kind, metric, first, second, roles, comparison.difference(first, second, metric))
            for kind, comparison in comparisons.items()
            if kind != "cases"
            for metric in COMPARED_METRICS
            for first, second, roles in self._pairs(comparison, metric)
        ]

    def _pairs(self, comparison: Comparison, metric: str) -> Iterator[tuple[str, str, tuple[str, str]]]:
        names = {
            kind: [entry.name for entry in self.entries if entry.kind == kind]
            for kind in ("family", "baseline", "ensemble")
        }
        family, baseline = (comparison.best(metric, names[kind]) for kind in ("family", "baseline"))
        single = comparison.best(metric, [*names["family"], *names["baseline"]])
        if family and baseline:
            yield family, baseline, ("best family", "best baseline")
        for ensemble in names["ensemble"] if single else ():
            if comparison.best(metric, [ensemble]):
                yield ensemble, str(single), ("ensemble", "best single model")


def write_results(results: Results, output: Path) -> Path:
    """Write ``results.md`` and ``results.json`` and return the path of the former."""
    comparisons = results.comparisons()
    pairings = results.pairings(comparisons)
    sections = [
        f"## {results.name}",
        "",
        _measured_on(results),
        "",
        markdown(_cost_table(results)),
        _fpr_text(results),
    ]
    for kind, comparison in comparisons.items():
        sections += ["", f"### {TITLES.get(kind, kind)}", "", _sizes(comparison), "", markdown(_table(comparison))]
        pairs = [pairing for pairing in pairings if pairing.kind == kind]
        if pairs:
            sections += [markdown(_pairing_table(pairs))]
    write_text(output / "results.md", "\n".join(sections) + "\n")
    write_json(output / "results.json", as_json(_numbers(results, comparisons, pairings)))
    return output / "results.md"


def _measured_on(results: Results) -> str:
    data = results.measured_on
    text = (
        f"Measured on `{data['healthy']}`, split by subject: {data['train']} scans to train on, "
        f"{data['calibration']} to calibrate with, {data['test']} to test. In brackets: 95 % percentile "
        "intervals of 2,000 bootstrap draws over subjects. Differences are paired over subjects. The best model of "
        "each line is chosen on the same test scans, so its own figure is slightly optimistic."
    )
    if any(len(entry.models) > 1 for entry in results.entries):
        text += " For a model trained with several seeds: the mean over the seeds ± their standard deviation."
    return text


def _sizes(comparison: Comparison) -> str:
    return f"{comparison.n_scans} scans of {comparison.n_subjects} subjects that every model scored."


def _cost_table(results: Results) -> pd.DataFrame:
    rows = [
        {
            "model": name,
            "family": _family(facts),
            "parameters": f"{facts['parameters']:,}",
            "steps": facts["steps"],
            "training, minutes": f"{facts['training_minutes']:.1f}",
            "scoring, s per scan": _number(facts["seconds_per_scan"], ".2f"),
            "network passes per image": _number(facts["passes_per_image"], "g"),
            "model id": f"`{facts['model_id']}`",
        }
        for name, facts in results.model_info.items()
    ]
    return pd.DataFrame(rows)


def _family(facts: Mapping[str, Any]) -> str:
    members = ", ".join(facts["members"])
    return f"{facts['family']} of {members}" if members else str(facts["family"])


def _number(value: float | None, form: str) -> str:
    return MISSING_VALUE if value is None else f"{value:{form}}"


def _fpr_text(results: Results) -> str:
    rows = [
        {
            "model": name,
            "target FPR": f"{p['alpha']:g}",
            "flagged healthy test scans": f"{p['n_flagged']} of {p['n_test']}",
            "99 % band": f"{p['band']['low']:.0f} to {p['band']['high']:.0f}",
            "99 % binomial band": f"{p['plain_band']['low']:.0f} to {p['plain_band']['high']:.0f}",
            "target": "within" if p["within_target"] else "exceeded",
        }
        for name, fpr_checks in results.fpr_checks.items()
        for p in fpr_checks
    ]
    return markdown(pd.DataFrame(rows)) if rows else ""


def _table(comparison: Comparison) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": name, **{title: _cell(comparison, name, metric) for metric, title in METRICS.items()}}
            for name in comparison.values
        ]
    )


def _cell(comparison: Comparison, name: str, metric: str) -> str:
    text = cell(comparison.values[name].get(metric))
    spread = comparison.spread.get(name, {}).get(metric)
    return text if spread is None or text == MISSING_VALUE else f"{text} ± {spread:.2f}"


def _pairing_table(pairings: Iterable[Pairing]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "compared": f"{d.roles[0]} `{d.first}` − {d.roles[1]} `{d.second}`",
                "by": METRICS[d.metric],
                "difference": cell(d.difference, digits=3),
                "excludes zero": _excludes_zero(d.difference),
            }
            for d in pairings
        ]
    )


def _excludes_zero(difference: Estimate) -> str:
    return "yes, better" if difference.low > 0 else "yes, worse" if difference.high < 0 else "no"


def _numbers(
    results: Results, comparisons: Mapping[str, Comparison], pairings: Iterable[Pairing]
) -> dict[str, Any]:
    return {
        "name": results.name,
        "measured_on": results.measured_on,
        "models": results.model_info,
        "fpr_checks": results.fpr_checks,
        "lesions": {
            kind: {
                name: {metric: vars(estimate) for metric, estimate in found.items()}
                for name, found in comparison.values.items()
            }
            for kind, comparison in comparisons.items()
        },
        "between_seeds": {kind: comparison.spread for kind, comparison in comparisons.items()},
        "differences": [
            {**vars(d), "difference": {**vars(d.difference), "excludes_zero": d.difference.excludes_zero}}
            for d in pairings
        ],
    }
