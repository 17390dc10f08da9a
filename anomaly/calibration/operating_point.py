"""Operating points: the threshold for a target false-positive rate (FPR), and the expected FPR.

Notation: n held-out healthy scans, alpha the target FPR, ``l = floor((n + 1) · alpha)``. The threshold is the
l-th largest healthy score, and ``score > threshold ⇔ p ≤ alpha``.

Over calibrations, the FPR is at most alpha on average. The FPR of one calibration is fixed but unknown: for
continuous scores its specificity (coverage) follows Beta(n + 1 − l, l), so its FPR follows Beta(l, n + 1 − l),
with mean l / (n + 1) ≤ alpha (Vovk 2012, *Conditional validity of inductive conformal predictors*, PMLR 25:475;
Angelopoulos & Bates 2023, *Conformal prediction: a gentle introduction*, §3.2).
Ties can only lower the FPR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from anomaly.calibration.conformal import Floats, flag_rank, sorted_reference


@dataclass(frozen=True)
class Interval:
    """A closed interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its expected false-positive rate.

    Parameters
    ----------
    alpha
        The target false-positive rate.
    n_healthy
        Number n of healthy reference scans.
    rank
        l: the threshold is the l-th largest healthy score.
    threshold
        A scan is flagged if and only if its score is above the threshold.
    expected_rate
        ``l / (n + 1)``, the expected FPR, at most ``alpha``.
    interval
        Central interval of the FPR of this calibration, from Beta(l, n + 1 − l).
    """

    alpha: float
    n_healthy: int
    rank: int
    threshold: float
    expected_rate: float
    interval: Interval


def operating_point(reference: npt.ArrayLike, alpha: float, confidence: float = 0.95) -> OperatingPoint:
    """Return the operating point of ``(n,)`` healthy scores at a target false-positive rate.

    Raises
    ------
    AlphaTooSmallError
        ``alpha < 1 / (n + 1)``; the message states how many scans are needed.
    """
    ordered = sorted_reference(reference)
    n = len(ordered)
    rank = flag_rank(n, alpha)
    return OperatingPoint(
        alpha=alpha,
        n_healthy=n,
        rank=rank,
        threshold=float(ordered[n - rank]),
        expected_rate=rank / (n + 1),
        interval=fpr_interval(n, alpha, confidence),
    )


def fpr_interval(n_healthy: int, alpha: float, confidence: float = 0.95) -> Interval:
    """Return the central interval of the FPR given one calibration, of Beta(l, n + 1 − l)."""
    rank = flag_rank(n_healthy, alpha)
    low, high = stats.beta.interval(confidence, rank, n_healthy + 1 - rank)
    return Interval(float(low), float(high))


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a rate, given ``count`` successes of ``n`` (Clopper & Pearson 1934)."""
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"expected a count between 0 and n with n ≥ 1, found {count} of {n}")
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, count, n - count + 1) if count > 0 else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, n - count) if count < n else 1.0
    return Interval(float(low), float(high))


def beta_binomial_band(n_test: int, n_healthy: int, alpha: float, confidence: float = 0.99) -> Interval:
    """Return the central band of the number of flags among ``n_test`` new healthy scans.

    Both the test scans and the calibration scans are random samples: the FPR of the threshold is
    Beta(l, n + 1 − l), the flags given that FPR are binomial, so the count is beta-binomial(m, l, n + 1 − l)
    (Marques 2024, *Universal distribution of the empirical coverage in split conformal prediction*, arXiv
    2303.02770). This band decides whether the target FPR is exceeded. The plain binomial band treats the threshold
    as exact, so that it would report an excess too often with, for example, 24 calibration scans.

    Each tail outside the band has a probability of at most ``(1 − confidence) / 2``.
    """
    rank = flag_rank(n_healthy, alpha)
    tail = (1 - confidence) / 2
    distribution = stats.betabinom(n_test, rank, n_healthy + 1 - rank)
    return Interval(float(distribution.ppf(tail)), float(distribution.ppf(1 - tail)))


def binomial_band(n_test: int, alpha: float, confidence: float = 0.99) -> Interval:
    """Return the central band of the number of flags if each healthy scan is flagged with probability alpha."""
    tail = (1 - confidence) / 2
    distribution = stats.binom(n_test, alpha)
    return Interval(float(distribution.ppf(tail)), float(distribution.ppf(1 - tail)))


@dataclass(frozen=True)
class FPRCheck:
    """Whether the false-positive rate on new healthy scans is within its target.

    Parameters
    ----------
    n_flagged, n_test
        Flagged healthy scans, and healthy scans tested.
    rate, interval
        ``n_flagged / n_test`` and its 95 % Clopper–Pearson interval.
    band
        99 % beta-binomial band of the count; the target is exceeded if the count is above it.
    plain_band
        99 % binomial band of the count at exactly alpha, for comparison.
    position
        Where the count lies relative to ``band``: ``"below"`` means a conservative threshold, ``"above"`` that the
        target FPR is exceeded.
    """

    alpha: float
    n_healthy: int
    n_flagged: int
    n_test: int
    rate: float
    interval: Interval
    band: Interval
    plain_band: Interval
    position: Literal["below", "inside", "above"]

    @property
    def within_target(self) -> bool:
        """Whether the count of flags does not exceed the band of the target."""
        return self.position != "above"

    @property
    def inside_plain_band(self) -> bool:
        """Whether the count lies inside the plain binomial band."""
        return self.n_flagged in self.plain_band


def check_fpr(n_flagged: int, n_test: int, n_healthy: int, alpha: float, confidence: float = 0.99) -> FPRCheck:
    """Compare ``n_flagged`` flags among ``n_test`` new healthy scans with the target ``alpha``."""
    band = beta_binomial_band(n_test, n_healthy, alpha, confidence)
    position: Literal["below", "inside", "above"] = "inside"
    if n_flagged not in band:
        position = "above" if n_flagged > band.high else "below"
    return FPRCheck(
        alpha=alpha,
        n_healthy=n_healthy,
        n_flagged=n_flagged,
        n_test=n_test,
        rate=n_flagged / n_test,
        interval=clopper_pearson(n_flagged, n_test),
        band=band,
        plain_band=binomial_band(n_test, alpha, confidence),
        position=position,
    )


def evidence_edges() -> Floats:
    """Return the thresholds ``(E,)`` at which voxels are counted: 0.001 to 1000, 0.7 % apart."""
    return np.geomspace(1e-3, 1e3, 2000)


def exceedance(values: npt.ArrayLike, edges: npt.ArrayLike) -> Floats:
    """Return the fraction ``(E,)`` of brain voxels whose evidence is above each threshold.

    Parameters
    ----------
    values
        ``(V,)`` evidence of one healthy scan inside the brain.
    edges
        ``(E,)`` thresholds in ascending order.
    """
    evidence, thresholds = np.asarray(values).ravel(), np.asarray(edges)
    if evidence.size == 0:
        raise ValueError("expected at least one brain voxel, found none")
    n_edges_below = np.searchsorted(thresholds, evidence, side="left")  # edges strictly below each voxel
    above = np.cumsum(np.bincount(n_edges_below, minlength=len(thresholds) + 1)[::-1])[::-1][1:]
    return np.asarray(above / evidence.size, dtype=np.float64)


def voxel_threshold(exceedances: npt.ArrayLike, edges: npt.ArrayLike, voxel_alpha: float) -> float:
    """Return the evidence threshold that at most a fraction ``voxel_alpha`` of healthy brain voxels exceeds.

    Parameters
    ----------
    exceedances
        ``(n, E)`` one row of :func:`exceedance` per healthy scan; all scans have equal weight.
    edges
        ``(E,)`` the thresholds of ``exceedances``; the result is the smallest sufficient one.
    voxel_alpha
        False-positive rate over the brain voxels of healthy scans, e.g. 0.001.
    """
    pooled = np.asarray(exceedances, dtype=np.float64).mean(axis=0)
    sufficient = np.flatnonzero(pooled <= voxel_alpha)
    if sufficient.size == 0:
        raise ValueError(
            f"at the highest edge {np.asarray(edges)[-1]:g}, {pooled[-1]:.3g} of healthy voxels still exceed it, "
            f"more than the {voxel_alpha:g} asked for; give edges that reach the top of the evidence"
        )
    return float(np.asarray(edges)[sufficient[0]])
