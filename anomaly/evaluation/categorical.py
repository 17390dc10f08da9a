"""Do rows of categories look like draws from a law whose columns are independent?

Row i has in column f the code c_if ∈ {0 … K_f − 1}, or −1 where it is not known; θ_fv is the probability of code v.

    X²_f      = Σ_v (n_fv − n_f θ_fv)² / (n_f θ_fv)          over the codes with θ_fv > 0
    p_f       = (1 + #{X² of simulated rows ≥ X²_f}) / (S + 1)   of S simulations of as many rows
    p         = min(1, F · min_f p_f)                        Bonferroni: holds however columns depend on each other
    differing = Σ_f [1 − Σ_v n_fv (n_fv − 1) / (n_f (n_f − 1))]  the mean number of columns in which two rows differ
    expected  = Σ_f [1 − Σ_v θ_fv²]                          the same of two rows drawn from the law
    distinct  = 1/n Σ_c [1 − (1 − p_c)ⁿ]                     expected share of different rows among n, of cells c

The law of X² is simulated instead of taken from its chi-square approximation, which is a bad one where a code is
expected fewer than five times, as the rare ones of a small sample are. A code of probability 0 has no term in X²:
one row that has it refutes the law by itself, whatever the other rows say, so such rows are counted apart.

Source: Pearson 1900 (X²); Hope 1968, "A Simplified Monte Carlo Significance Test Procedure" (p).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIMULATIONS = 9999
UNKNOWN = -1

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ColumnFit:
    """How one column agrees with its law.

    Parameters
    ----------
    statistic
        X² over the possible codes.
    p_value
        At least 1 / (simulations + 1); 1 where no row tells anything.
    n
        Rows with a known, possible code.
    impossible
        Rows with a code of probability 0.
    """

    statistic: float
    p_value: float
    n: int
    impossible: int


@dataclass(frozen=True)
class MarginFit:
    """How all columns agree with their laws: one fit for each, and what they say together."""

    columns: tuple[ColumnFit, ...]

    @property
    def p_value(self) -> float:
        """Bonferroni's: the smallest of the columns' p-values times their number, at most 1."""
        return min(1.0, len(self.columns) * min(column.p_value for column in self.columns))

    @property
    def impossible(self) -> int:
        """Codes of probability 0 that were seen, over all columns."""
        return sum(column.impossible for column in self.columns)


def margin_fit(codes: npt.ArrayLike, law: Sequence[Floats], seed: int, simulations: int = SIMULATIONS) -> MarginFit:
    """Hold the margins of rows against a law.

    Parameters
    ----------
    codes
        ``(N, F)`` integers; −1 where a code is not known.
    law
        F arrays ``(K_f,)`` of probabilities.
    """
    rng = np.random.default_rng(seed)
    columns = zip(column_counts(codes, [len(theta) for theta in law]), law, strict=True)
    return MarginFit(tuple(column_fit(counts, theta, rng, simulations) for counts, theta in columns))


def column_fit(
    counts: npt.ArrayLike, theta: npt.ArrayLike, rng: np.random.Generator, simulations: int = SIMULATIONS
) -> ColumnFit:
    """Hold counts ``(K,)`` against probabilities ``(K,)``."""
    seen, probabilities = np.asarray(counts, dtype=np.int64), np.asarray(theta, dtype=np.float64)
    possible = probabilities > 0
    n, impossible = int(seen[possible].sum()), int(seen[~possible].sum())
    if n == 0:
        return ColumnFit(0.0, 1.0, 0, impossible)
    expected = n * probabilities[possible]
    found = float(_statistic(seen[possible], expected))
    simulated = _statistic(rng.multinomial(n, probabilities[possible], size=simulations), expected)
    at_least = int((simulated >= found * (1 - 1e-12)).sum())  # ties are ties, whatever the order of a sum
    return ColumnFit(found, (1 + at_least) / (simulations + 1), n, impossible)


def column_counts(codes: npt.ArrayLike, sizes: Sequence[int]) -> list[Codes]:
    """Return how often each code occurs: for each column of ``(N, F)`` an array ``(K_f,)``, K_f given by ``sizes``.

    Raises
    ------
    ValueError
        The codes have another number of columns, or one of them is not below its K_f.
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

    nan where a column is known of fewer than two rows.
    """
    return float(sum(_chance_to_differ(of_column) for of_column in counts))


def expected_differing_columns(law: Sequence[Floats]) -> float:
    """Return the expected number of columns in which two rows drawn from the law differ."""
    return float(sum(1 - np.square(theta).sum() for theta in law))


def distinct_share(rows: Sequence[object]) -> float:
    """Return the number of different rows as a share of all of them."""
    return len(set(rows)) / len(rows)


def expected_distinct_share(probabilities: npt.ArrayLike, n: int) -> float:
    """Return the expected share of different ones among ``n`` draws from cells of these probabilities ``(C,)``."""
    return float((1 - (1 - np.asarray(probabilities, dtype=np.float64)) ** n).sum()) / n


def _statistic(counts: Codes, expected: Floats) -> Floats:
    return np.asarray((np.square(counts - expected) / expected).sum(axis=-1))


def _chance_to_differ(counts: Codes) -> float:
    n = int(counts.sum())
    return 1 - float((counts * (counts - 1)).sum()) / (n * (n - 1)) if n > 1 else float("nan")
