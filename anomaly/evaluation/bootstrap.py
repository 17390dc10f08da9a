"""Bootstrap over subjects: percentile intervals from 2,000 draws (Efron & Tibshirani 1993, ch. 13).

The subject is the unit of resampling, because scans of one subject are correlated: a draw holds all scans of a
drawn subject. Draws are stratified, so that each has as many healthy and abnormal subjects as the data.
Differences are paired: both terms are computed from the same draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]
Statistic = Callable[[Rows], float]

N_DRAWS = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile interval.

    Parameters
    ----------
    value
        Estimate from all data; nan if undefined.
    low, high
        Percentile interval at ``confidence``; nan with fewer than two subjects, or if no draw defines the value.
    n_subjects
        Number of subjects.
    n_draws
        Draws in which the value was defined.
    """

    value: float
    low: float
    high: float
    n_subjects: int
    n_draws: int
    confidence: float = CONFIDENCE

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero; False without an interval."""
        return self.low > 0 or self.high < 0


def draws(
    subjects: Sequence[Any] | npt.NDArray[Any],
    strata: Sequence[Any] | npt.NDArray[Any] | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Iterator[Rows]:
    """Yield the rows of each bootstrap draw.

    Parameters
    ----------
    subjects
        ``(n,)`` subject of each row.
    strata
        ``(n,)`` stratum of each row, for example its label. A subject with rows in several strata belongs to a
        stratum of its own.
    """
    rows_of = _rows_by_subject(subjects)
    groups = _groups(subjects, strata)
    rng = np.random.default_rng(seed)
    for _ in range(n_draws):
        drawn = [group[i] for group in groups for i in rng.integers(len(group), size=len(group))]
        yield np.concatenate([rows_of[subject] for subject in drawn])


def bootstrap(
    statistic: Statistic,
    subjects: Sequence[Any] | npt.NDArray[Any],
    strata: Sequence[Any] | npt.NDArray[Any] | None = None,
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate a statistic with its bootstrap interval over subjects.

    Parameters
    ----------
    statistic
        Row indices ``(k,)`` → value; nan if undefined. Undefined draws are left out and not counted.
    subjects, strata
        See :func:`draws`.
    """
    n = len(set(np.asarray(subjects).tolist()))
    value = statistic(np.arange(len(subjects))) if n else float("nan")
    if n < 2:
        return Estimate(value, float("nan"), float("nan"), n, 0, confidence)
    found = np.array([statistic(rows) for rows in draws(subjects, strata, n_draws, seed)])
    return _estimate(value, found, n, confidence)


def bootstrap_mean(
    values: npt.ArrayLike,
    subjects: Sequence[Any] | npt.NDArray[Any],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate the mean over subjects of ``(n,)`` values with its interval; nan values are left out.

    The values of each subject are averaged first, so that all subjects have equal weight.
    """
    means = subject_means(values, subjects)
    if means.size < 2:
        value = float(means[0]) if means.size else float("nan")
        return Estimate(value, float("nan"), float("nan"), means.size, 0, confidence)
    rng = np.random.default_rng(seed)
    found = means[rng.integers(means.size, size=(n_draws, means.size))].mean(axis=1)
    return _estimate(float(means.mean()), found, means.size, confidence)


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    subjects: Sequence[Any] | npt.NDArray[Any],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate the mean of ``first − second`` over subjects; both are ``(n,)`` values of the same scans."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_mean(difference, subjects, n_draws=n_draws, seed=seed, confidence=confidence)


def subject_means(values: npt.ArrayLike, subjects: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the mean of the finite values of each subject that has any, ``(n_subjects,)``."""
    array = np.asarray(values, dtype=np.float64)
    groups = [array[rows] for rows in _rows_by_subject(subjects).values()]
    return np.array([group[np.isfinite(group)].mean() for group in groups if np.isfinite(group).any()])


def _estimate(value: float, found: npt.NDArray[np.float64], n_subjects: int, confidence: float) -> Estimate:
    defined = found[np.isfinite(found)]
    if defined.size == 0:
        return Estimate(value, float("nan"), float("nan"), n_subjects, 0, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n_subjects, int(defined.size), confidence)


def _rows_by_subject(subjects: Sequence[Any] | npt.NDArray[Any]) -> dict[Any, Rows]:
    rows: dict[Any, list[int]] = {}
    for row, subject in enumerate(np.asarray(subjects).tolist()):
        rows.setdefault(subject, []).append(row)
    return {subject: np.array(found, dtype=np.intp) for subject, found in rows.items()}


def _groups(
    subjects: Sequence[Any] | npt.NDArray[Any], strata: Sequence[Any] | npt.NDArray[Any] | None
) -> list[list[Any]]:
    """Group subjects by the set of strata that their rows belong to."""
    strata_of: dict[Any, set[Any]] = {}
    labels = [0] * len(subjects) if strata is None else np.asarray(strata).tolist()
    for subject, label in zip(np.asarray(subjects).tolist(), labels, strict=True):
        strata_of.setdefault(subject, set()).add(label)
    groups: dict[frozenset[Any], list[Any]] = {}
    for subject, found in strata_of.items():
        groups.setdefault(frozenset(found), []).append(subject)
    return list(groups.values())
