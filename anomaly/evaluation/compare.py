"""Several models on the same scans: one table, and paired differences with intervals over subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from anomaly.core.errors import InputError, unknown_name
from anomaly.evaluation.bootstrap import N_DRAWS, Estimate, bootstrap, bootstrap_mean
from anomaly.evaluation.detection import METRICS

SCAN_METRICS = ("auroc", "sensitivity_at_95_specificity")
VOXEL_METRICS = ("voxel_average_precision", "dice", "oracle_dice_one_threshold", "oracle_dice_per_scan")
"""Columns of the per-scan tables whose means over subjects are compared."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several runs on the scans they share.

    Parameters
    ----------
    values
        Run → metric → estimate.
    reference
        The run that differences are taken from.
    differences
        Other run → metric → ``reference − other``, paired; positive = the reference is better.
    n_scans, n_subjects, n_left_out
        Scans that every run scored, their subjects, and scans that some run did not score.
    """

    values: dict[str, dict[str, Estimate]]
    reference: str
    differences: dict[str, dict[str, Estimate]]
    n_scans: int
    n_subjects: int
    n_left_out: int

    def beats(self, metric: str) -> list[str]:
        """Return the runs that the reference beats: the whole paired interval lies above zero."""
        return [name for name, found in self.differences.items() if metric in found and found[metric].low > 0]


def compare(
    runs: Mapping[str, pd.DataFrame], reference: str | None = None, *, n_draws: int = N_DRAWS, seed: int = 0
) -> Comparison:
    """Compare runs on the scans they all scored, by a paired bootstrap over subjects.

    Parameters
    ----------
    runs
        Name → per-scan table of :func:`pipelines.evaluate.evaluate`: ``scan_id subject ill score`` and the
        columns of :data:`VOXEL_METRICS`.
    reference
        The run to compare the others with; the first by default.

    Raises
    ------
    InputError
        No runs, an unknown reference, or no scan in common.
    """
    if not runs:
        raise InputError("there are no runs to compare")
    chosen = reference or next(iter(runs))
    if chosen not in runs:
        raise InputError(unknown_name("run", chosen, list(runs)))
    tables, n_left_out = _aligned(runs)
    values = {name: _values(table, None, n_draws, seed) for name, table in tables.items()}
    others = (name for name in tables if name != chosen)
    differences = {name: _values(tables[chosen], tables[name], n_draws, seed) for name in others}
    n_subjects = tables[chosen]["subject"].nunique()
    return Comparison(values, chosen, differences, len(tables[chosen]), n_subjects, n_left_out)


def _aligned(runs: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], int]:
    scored = {name: table[table["score"].notna()].set_index("scan_id") for name, table in runs.items()}
    indices = [set(table.index) for table in scored.values()]
    common = sorted(set.intersection(*indices))
    if not common:
        raise InputError("the runs have no scored scan in common; score the same scans with each model")
    aligned = {name: table.loc[common].reset_index() for name, table in scored.items()}
    first = next(iter(aligned.values()))
    for name, table in aligned.items():
        if not (table["ill"].eq(first["ill"]).all() and table["subject"].eq(first["subject"]).all()):
            raise InputError(f"run {name!r} was evaluated with other labels or subjects; use one table of labels")
    return aligned, len(set.union(*indices)) - len(common)


def _values(table: pd.DataFrame, other: pd.DataFrame | None, n_draws: int, seed: int) -> dict[str, Estimate]:
    """Return each metric of a run or, given another run, its paired difference to it."""
    found = {name: _scan_level(name, table, other, n_draws, seed) for name in SCAN_METRICS}
    subjects = table["subject"].to_numpy()
    for metric in VOXEL_METRICS:
        if metric in table and (other is None or metric in other):
            values = table[metric].to_numpy(dtype=np.float64)
            if other is not None:
                values = values - other[metric].to_numpy(dtype=np.float64)
            found[metric] = bootstrap_mean(values, subjects, n_draws=n_draws, seed=seed)
    return found


def _scan_level(name: str, table: pd.DataFrame, other: pd.DataFrame | None, n_draws: int, seed: int) -> Estimate:
    metric, ill = METRICS[name], table["ill"].to_numpy(dtype=bool)
    scores = table["score"].to_numpy(dtype=np.float64)
    other_scores = None if other is None else other["score"].to_numpy(dtype=np.float64)

    def statistic(rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> float:
        value = metric(ill[rows], scores[rows])
        return value if other_scores is None else value - metric(ill[rows], other_scores[rows])

    return bootstrap(statistic, table["subject"].to_numpy(), ill, n_draws=n_draws, seed=seed)
