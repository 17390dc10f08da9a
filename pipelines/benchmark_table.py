"""The tables of a benchmark: every model on the same scans, differences paired over subjects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly.core.files import write_json, write_text
from anomaly.evaluation.compare import Comparison, compare
from anomaly.evaluation.tables import as_json, cell, markdown

METRICS = {
    "voxel_average_precision": "voxel AP",
    "oracle_dice_per_scan": "best Dice (oracle, per scan)",
    "oracle_dice_one_threshold": "best Dice (oracle, one threshold)",
    "dice": "Dice at the calibrated threshold",
    "auroc": "scan AUROC",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
}
MEASURED = ("voxel_average_precision", "oracle_dice_one_threshold")
TITLES = {
    "dark": "Planted dark lesions (15 to 50 % signal loss)",
    "bright": "Planted bright lesions (15 to 50 % signal gain)",
    "texture": "Planted iso-intense texture",
    "mass_effect": "Planted mass effect (deformation)",
    "cases": "Real cases (sanity check: too few for a claim, and from other scanners)",
}


@dataclass(frozen=True)
class Row:
    """One measured figure, and the limit it should keep."""

    what: str
    found: str
    limit: str = ""


def measured_table(rows: Iterable[Row]) -> str:
    """Return measured figures as a table."""
    return markdown(pd.DataFrame([{"what": r.what, "measured": r.found, "limit": r.limit} for r in rows]))


class Results:
    """What a benchmark has found so far.

    Parameters
    ----------
    name
        Of the benchmark.
    baselines
        The models that are baselines; the first other model is compared with the best of them.
    measured_on
        Data and numbers of scans.
    """

    def __init__(self, name: str, models: Sequence[str], baselines: Sequence[str], measured_on: Mapping[str, Any]):
        self.name = name
        self.models = tuple(models)
        self.baselines = tuple(baselines)
        self.measured_on = dict(measured_on)
        self.facts: dict[str, dict[str, Any]] = {}
        self.per_scan: dict[str, dict[str, pd.DataFrame]] = {}
        self.promises: dict[str, list[dict[str, Any]]] = {}

    def add_model(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Note what a model is and what it cost."""
        training = metadata["training"]
        self.facts[name] = {
            "family": metadata["family"],
            "parameters": training["n_parameters"],
            "steps": training["steps"],
            "training_minutes": training["seconds"] / 60,
            "model_id": metadata["model_id"],
        }

    def add(self, name: str, kind: str, per_scan: pd.DataFrame, promises: Sequence[dict[str, Any]]) -> None:
        """Note the evaluation of a model on one kind of lesion."""
        self.per_scan.setdefault(kind, {})[name] = per_scan
        self.promises[name] = list(promises)

    def comparisons(self) -> dict[str, Comparison]:
        """Return for each kind of lesion the first model against the others."""
        return {kind: compare(tables, self.models[0]) for kind, tables in self.per_scan.items()}


def write_results(results: Results, output: Path) -> Path:
    """Write ``results.md`` and ``results.json`` and return the path of the former."""
    comparisons = results.comparisons()
    parts = [
        f"## {results.name}",
        "",
        _measured_on(results),
        "",
        markdown(_cost_table(results)),
        _promise_text(results),
    ]
    for kind, comparison in comparisons.items():
        parts += ["", f"### {TITLES.get(kind, kind)}", "", _sizes(comparison), "", markdown(_table(comparison))]
        if kind != "cases":
            parts += [_verdict(comparison, results)]
    write_text(output / "results.md", "\n".join(parts) + "\n")
    write_json(output / "results.json", as_json(_numbers(results, comparisons)))
    return output / "results.md"


def _measured_on(results: Results) -> str:
    found = results.measured_on
    return (
        f"Measured on `{found['healthy']}`, split by subject: {found['train']} scans to train on, "
        f"{found['calibration']} to calibrate with, {found['test']} to test. In brackets: 95 % percentile "
        "intervals of 2,000 bootstrap draws over subjects."
    )


def _sizes(comparison: Comparison) -> str:
    return f"{comparison.n_scans} scans of {comparison.n_subjects} subjects that every model scored."


def _cost_table(results: Results) -> pd.DataFrame:
    rows = [
        {
            "model": name,
            "family": facts["family"],
            "parameters": f"{facts['parameters']:,}",
            "steps": facts["steps"],
            "training, minutes": f"{facts['training_minutes']:.1f}",
            "model id": f"`{facts['model_id']}`",
        }
        for name, facts in results.facts.items()
    ]
    return pd.DataFrame(rows)


def _promise_text(results: Results) -> str:
    rows = [
        {
            "model": name,
            "promised": f"{p['alpha']:g}",
            "flagged healthy test scans": f"{p['n_flagged']} of {p['n_test']}",
            "99 % band": f"{p['band']['low']:.0f} to {p['band']['high']:.0f}",
            "99 % binomial band": f"{p['plain_band']['low']:.0f} to {p['plain_band']['high']:.0f}",
            "promise": "kept" if p["kept"] else "broken",
        }
        for name, promises in results.promises.items()
        for p in promises
    ]
    return markdown(pd.DataFrame(rows)) if rows else ""


def _table(comparison: Comparison) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": name, **{title: cell(found.get(metric)) for metric, title in METRICS.items()}}
            for name, found in comparison.values.items()
        ]
    )


def _verdict(comparison: Comparison, results: Results) -> str:
    """Say in words whether the first model beats the best baseline, metric by metric."""
    rivals = [name for name in results.baselines if name in comparison.differences]
    if not rivals:
        return ""
    lines = []
    for metric in MEASURED:
        best = max(rivals, key=lambda name: comparison.values[name][metric].value)
        difference = comparison.differences[best][metric]
        word = "beats" if difference.low > 0 else "is below" if difference.high < 0 else "is not separated from"
        lines.append(
            f"- {METRICS[metric]}: `{comparison.reference}` {word} the best baseline, `{best}`: paired difference "
            f"{cell(difference)}."
        )
    return "\n".join(lines)


def _numbers(results: Results, comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
    return {
        "name": results.name,
        "measured_on": results.measured_on,
        "models": results.facts,
        "promises": results.promises,
        "lesions": {
            kind: {
                name: {metric: vars(estimate) for metric, estimate in found.items()}
                for name, found in comparison.values.items()
            }
            for kind, comparison in comparisons.items()
        },
    }
