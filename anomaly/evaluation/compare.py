"""Several models on the same scans: one table, and paired differences with intervals over subjects.

A model may have been trained several times with different seeds. Its value is then the mean over the trainings, on
the same draw of subjects; the standard deviation between trainings is reported with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from anomaly.core.errors import InputError, unknown_name
from anomaly.evaluation.bootstrap import N_DRAWS, Estimate, Rows, bootstrap, bootstrap_mean, subject_means
from anomaly.evaluation.detection import METRICS

SCAN_METRICS = ("auroc", "sensitivity_at_95_specificity")
VOXEL_METRICS = ("voxel_average_precision", "dice", "oracle_dice_one_threshold", "oracle_dice_per_scan")
"""Columns of the per-scan tables; their means over subjects are compared."""

Tables = Sequence[pd.DataFrame]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several runs on the scans they share.

    Parameters
    ----------
    tables
        Run → per-scan tables, one per training, all with the same rows.
    values
        Run → metric → estimate.
    spread
        Run → metric → standard deviation between trainings; only for runs with several trainings.
    n_scans, n_subjects, n_left_out
        Number of scans that all runs scored, of their subjects, and of scans that some run did not score.
    """

    tables: dict[str, Tables]
    values: dict[str, dict[str, Estimate]]
    spread: dict[str, dict[str, float]]
    n_scans: int
    n_subjects: int
    n_left_out: int
    n_draws: int = N_DRAWS
    seed: int = 0

    def difference(self, first: str, second: str, metric: str) -> Estimate:
        """Estimate the paired difference ``first − second``; positive = the first is better."""
        for name in (first, second):
            if metric not in self.values.get(name, {}):
                known = [run for run, found in self.values.items() if metric in found]
                raise InputError(unknown_name(f"run with {metric}", name, known))
        return _estimate(metric, self.tables[first], self.tables[second], self.n_draws, self.seed)

    def best(self, metric: str, names: Iterable[str]) -> str | None:
        """Return the run in ``names`` with the highest value of a metric; None if no run has a finite value."""
        values = {name: self.values[name][metric].value for name in names if metric in self.values[name]}
        return max((name for name in values if np.isfinite(values[name])), key=values.__getitem__, default=None)


def compare(runs: Mapping[str, pd.DataFrame | Tables], *, n_draws: int = N_DRAWS, seed: int = 0) -> Comparison:
    """Compare runs on the scans they all scored, by a paired bootstrap over subjects.

    Parameters
    ----------
    runs
        Name → per-scan table of :func:`pipelines.evaluate.evaluate`, or one table per training: ``scan_id subject
        is_abnormal score`` and the columns of :data:`VOXEL_METRICS`.

    Raises
    ------
    InputError
        No runs, or no scan in common.
    """
    if not runs:
        raise InputError("there are no runs to compare")
    tables, n_left_out = _aligned({n: [t] if isinstance(t, pd.DataFrame) else t for n, t in runs.items()})
    values = {
        name: {metric: _estimate(metric, found, [], n_draws, seed) for metric in _metrics(found)}
        for name, found in tables.items()
    }
    spread = {
        name: {m: float(np.std([_value(m, table) for table in found], ddof=1)) for m in _metrics(found)}
        for name, found in tables.items()
        if len(found) > 1
    }
    first = next(iter(tables.values()))[0]
    return Comparison(
        tables, values, spread, len(first), first["subject"].nunique(), n_left_out, n_draws=n_draws, seed=seed
    )


def _aligned(runs: Mapping[str, Tables]) -> tuple[dict[str, Tables], int]:
    scored = {
        name: [table[table["score"].notna()].set_index("scan_id") for table in tables]
        for name, tables in runs.items()
    }
    indices = [set(table.index) for tables in scored.values() for table in tables]
    common = sorted(set.intersection(*indices))
    if not common:
        raise InputError("the runs have no scored scan in common; score the same scans with each model")
    aligned: dict[str, Tables] = {
        name: [table.loc[common].reset_index() for table in tables] for name, tables in scored.items()
    }
    first = next(iter(aligned.values()))[0]
    for name, tables in aligned.items():
        if not all(
            table[column].eq(first[column]).all() for table in tables for column in ("is_abnormal", "subject")
        ):
            raise InputError(f"run {name!r} was evaluated with other labels or subjects; use one table of labels")
    return aligned, len(set.union(*indices)) - len(common)


def _metrics(tables: Tables) -> list[str]:
    return [*SCAN_METRICS, *(metric for metric in VOXEL_METRICS if all(metric in table for table in tables))]


def _estimate(metric: str, tables: Tables, others: Tables, n_draws: int, seed: int) -> Estimate:
    """Estimate a metric of a run or, given another run, the paired difference between them."""
    first = tables[0]
    if metric in VOXEL_METRICS:
        values = _mean(tables, metric) - _mean(others, metric)
        return bootstrap_mean(values, first["subject"].to_numpy(), n_draws=n_draws, seed=seed)
    function, is_abnormal = METRICS[metric], first["is_abnormal"].to_numpy(dtype=bool)
    scores, other_scores = ([t["score"].to_numpy(dtype=np.float64) for t in some] for some in (tables, others))

    def statistic(rows: Rows) -> float:
        found, other_values = (
            [function(is_abnormal[rows], s[rows]) for s in some] for some in (scores, other_scores)
        )
        return float(np.mean(found)) - (float(np.mean(other_values)) if other_values else 0.0)

    return bootstrap(statistic, first["subject"].to_numpy(), is_abnormal, n_draws=n_draws, seed=seed)


def _mean(tables: Tables, column: str) -> npt.NDArray[np.float64]:
    """Return the mean of a column over trainings, per scan; 0 without a table."""
    return np.asarray(sum(table[column].to_numpy(dtype=np.float64) for table in tables) / max(len(tables), 1))


def _value(metric: str, table: pd.DataFrame) -> float:
    """Compute a metric of one training, without an interval."""
    if metric in VOXEL_METRICS:
        means = subject_means(table[metric].to_numpy(), table["subject"].to_numpy())
        return float(means.mean()) if means.size else float("nan")
    return METRICS[metric](table["is_abnormal"].to_numpy(dtype=bool), table["score"].to_numpy(dtype=np.float64))
