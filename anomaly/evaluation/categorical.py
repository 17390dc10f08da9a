"""Goodness of fit of categorical rows to a distribution with independent columns.

Row i has in column f the code c_if ∈ {0 … K_f − 1}, or −1 if unknown; θ_fv is the probability of code v.

    X²_f      = Σ_v (n_fv − n_f θ_fv)² / (n_f θ_fv)          over the codes with θ_fv > 0
    p_f       = (1 + #{X² of simulated rows ≥ X²_f}) / (S + 1)   of S simulations of as many rows
    p         = min(1, F · min_f p_f)                        Bonferroni: valid under any dependence of the columns
    differing = Σ_f [1 − Σ_v n_fv (n_fv − 1) / (n_f (n_f − 1))]  the mean number of columns in which two rows differ
    expected  = Σ_f [1 − Σ_v θ_fv²]                          the same for two rows drawn from θ
    distinct  = 1/n Σ_c [1 − (1 − p_c)ⁿ]                     expected share of different rows among n, of cells c

The null distribution of X² is simulated, because the chi-square approximation is poor if a code is expected fewer
than five times. A code of probability 0 has no term in X². A single row with such a code contradicts θ, so these
rows are counted separately.

Source: Pearson 1900 (X²); Hope 1968, "A Simplified Monte Carlo Significance Test Procedure" (p).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

N_SIMULATIONS = 9999
UNKNOWN = -1

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ColumnFit:
    """Goodness of fit of one column.

    Parameters
    ----------
    statistic
        X² over the possible codes.
    p_value
        At least 1 / (simulations + 1); 1 if no row has a known, possible code.
    n
        Number of rows with a known, possible code.
    impossible
        Number of rows with a code of probability 0.
    """

    statistic: float
    p_value: float
    n: int
    impossible: int


@dataclass(frozen=True)
class MarginFit:
    """Goodness of fit of the marginal distribution of every column."""

    columns: tuple[ColumnFit, ...]

    @property
    def p_value(self) -> float:
        """The Bonferroni p-value: the smallest p-value of a column times the number of columns, at most 1."""
        return min(1.0, len(self.columns) * min(column.p_value for column in self.columns))

    @property
    def impossible(self) -> int:
        """The number of codes of probability 0 over all columns."""
        return sum(column.impossible for column in self.columns)


def margin_fit(
    codes: npt.ArrayLike, probabilities: Sequence[Floats], seed: int, simulations: int = N_SIMULATIONS
) -> MarginFit:
    """Test the marginal distributions of rows.

    Parameters
    ----------
    codes
        ``(N, F)`` integers; −1 = unknown.
    probabilities
        F arrays ``(K_f,)`` of probabilities.
    """
    rng = np.random.default_rng(seed)
    columns = zip(column_counts(codes, [len(theta) for theta in probabilities]), probabilities, strict=True)
    return MarginFit(tuple(column_fit(counts, theta, rng, simulations) for counts, theta in columns))


def column_fit(
    counts: npt.ArrayLike, theta: npt.ArrayLike, rng: np.random.Generator, simulations: int = N_SIMULATIONS
) -> ColumnFit:
    """Test observed counts ``(K,)`` against probabilities ``(K,)``."""
    observed, probabilities = np.asarray(counts, dtype=np.int64), np.asarray(theta, dtype=np.float64)
    possible = probabilities > 0
    n, impossible = int(observed[possible].sum()), int(observed[~possible].sum())
    if n == 0:
        return ColumnFit(0.0, 1.0, 0, impossible)
    expected = n * probabilities[possible]
    found = float(_statistic(observed[possible], expected))
    simulated = _statistic(rng.multinomial(n, probabilities[possible], size=simulations), expected)
    at_least = int(
        (simulated >= found * (1 - 1e-12)).sum()
    )  # the tolerance counts ties that differ by rounding only
    return ColumnFit(found, (1 + at_least) / (simulations + 1), n, impossible)


def column_counts(codes: npt.ArrayLike, sizes: Sequence[int]) -> list[Codes]:
    """Count each code: for every column of ``(N, F)`` an array ``(K_f,)``, with K_f from ``sizes``.

    Raises
    ------
    ValueError
        The number of columns is wrong, or a code is below −1 or not below K_f.
    """
    rows = np.asarray(codes, dtype=np.int64)
    if rows.ndim != 2 or rows.shape[1] != len(sizes) or (rows < UNKNOWN).any() or (rows >= np.array(sizes)).any():
        raise ValueError(
            f"found codes of shape {rows.shape}, {rows.min(initial=0)} to {rows.max(initial=0)}; expected "
            f"(rows, {len(sizes)}), −1 or below {', '.join(map(str, sizes))}"
        )
    return [np.bincount(rows[rows[:, f] != UNKNOWN, f], minlength=size) for f, size in enumerate(sizes)]


def differing_columns(counts: Sequence[Codes]) -> float:
    """Return the mean number of columns in which two rows differ, from counts ``(K_f,)`` of each column.

    nan if a column has fewer than two known codes.
    """
    return float(sum(_probability_of_difference(of_column) for of_column in counts))


def expected_differing_columns(probabilities: Sequence[Floats]) -> float:
    """Return the expected number of columns in which two rows drawn from ``probabilities`` differ."""
    return float(sum(1 - np.square(theta).sum() for theta in probabilities))


def distinct_share(rows: Sequence[object]) -> float:
    """Return the fraction of rows that are distinct: number of distinct rows over number of rows."""
    return len(set(rows)) / len(rows)


def expected_distinct_share(probabilities: npt.ArrayLike, n: int) -> float:
    """Return the expected fraction of distinct values among ``n`` draws from cells with probabilities ``(C,)``."""
    return float((1 - (1 - np.asarray(probabilities, dtype=np.float64)) ** n).sum()) / n


def _statistic(counts: Codes, expected: Floats) -> Floats:
    return np.asarray((np.square(counts - expected) / expected).sum(axis=-1))


def _probability_of_difference(counts: Codes) -> float:
    n = int(counts.sum())
    return 1 - float((counts * (counts - 1)).sum()) / (n * (n - 1)) if n > 1 else float("nan")
