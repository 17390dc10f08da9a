"""False-positive rate in subgroups of the healthy subjects: by age band and by sex.

A target that holds over all healthy scans may be exceeded in one group of subjects. The intervals are of each group
alone (Clopper & Pearson).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.calibration.operating_point import Interval, clopper_pearson

AGE_BANDS = {"under 40 years": (0.0, 40.0), "40 to 59 years": (40.0, 60.0), "60 years and older": (60.0, np.inf)}
"""Name → lowest age and the age below which it ends, years."""

SEXES = {"female": "F", "male": "M"}
MIN_SCANS = 10  # a rate of fewer scans says too little

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SubgroupFPR:
    """The false-positive rate in one group of healthy subjects.

    Parameters
    ----------
    group
        E.g. ``"60 years and older"``, ``"male"`` or ``"unknown age"``.
    alpha
        The target false-positive rate.
    n_flagged, n_test
        Flagged healthy scans of the group, and all its healthy scans.
    rate, interval
        ``n_flagged / n_test`` and its 95 % Clopper–Pearson interval.
    too_few
        Whether the group has fewer than ten scans, so that its rate says too little.
    """

    group: str
    alpha: float
    n_flagged: int
    n_test: int
    rate: float
    interval: Interval
    too_few: bool


def subgroup_fprs(
    p_values: npt.ArrayLike, ages: npt.ArrayLike, sexes: Sequence[str], alpha: float
) -> tuple[SubgroupFPR, ...]:
    """Return the false-positive rate of each group that has healthy scans; empty if no age and no sex is known.

    Parameters
    ----------
    p_values, ages
        ``(n,)`` of the healthy scans; ages in years, NaN where unknown.
    sexes
        ``(n,)``: ``"F"``, ``"M"``, or another text where unknown.
    """
    flagged = np.asarray(p_values, dtype=np.float64) <= alpha
    members = subgroups(ages, sexes)
    if all(group.startswith("unknown") for group, inside in members.items() if inside.any()):
        return ()
    return tuple(_subgroup_fpr(group, alpha, flagged[inside]) for group, inside in members.items() if inside.any())


def subgroups(ages: npt.ArrayLike, sexes: Sequence[str]) -> dict[str, Flags]:
    """Return which of ``(n,)`` scans belong to each group; every scan is in one group by age and one by sex."""
    years, codes = np.asarray(ages, dtype=np.float64), np.asarray(sexes, dtype=str)
    by_age = {name: (years >= low) & (years < high) for name, (low, high) in AGE_BANDS.items()}
    by_sex = {name: codes == code for name, code in SEXES.items()}
    unknown_sex = ~np.isin(codes, list(SEXES.values()))
    return {**by_age, "unknown age": np.isnan(years), **by_sex, "unknown sex": unknown_sex}


def _subgroup_fpr(group: str, alpha: float, flagged: Flags) -> SubgroupFPR:
    count, n = int(flagged.sum()), len(flagged)
    return SubgroupFPR(group, alpha, count, n, count / n, clopper_pearson(count, n), n < MIN_SCANS)
