"""Operating points: the threshold behind a promised false-flag rate, and what the promise is worth.

Notation: n held-out healthy scans, alpha the promised rate, ``l = floor((n + 1) · alpha)``. The threshold is the
l-th largest healthy score, and ``score > threshold ⇔ p ≤ alpha``.

Over calibrations, the false-flag rate is at most alpha on average. One particular calibration has one particular
rate: for continuous scores its specificity (coverage) follows Beta(n + 1 − l, l) and its false-flag rate
therefore Beta(l, n + 1 − l), with mean l / (n + 1) ≤ alpha (Vovk 2012, *Conditional validity of inductive
conformal predictors*, PMLR 25:475; Angelopoulos & Bates 2023, *Conformal prediction: a gentle introduction*,
§3.2). With ties the rate can only be lower.
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
    """A threshold and what may be expected of it.

    Parameters
    ----------
    alpha
        The promised false-flag rate.
    n_healthy
        Number n of healthy scans behind it.
    rank
        l: the threshold is the l-th largest healthy score.
    threshold
        A scan is flagged if and only if its score is above this.
    expected_rate
        ``l / (n + 1)``, the false-flag rate to expect, at most ``alpha``.
    interval
        Central interval of the false-flag rate of this one calibration, from Beta(l, n + 1 − l).
    """

    alpha: float
    n_healthy: int
    rank: int
    threshold: float
    expected_rate: float
    interval: Interval


def operating_point(reference: npt.ArrayLike, alpha: float, confidence: float = 0.95) -> OperatingPoint:
    """Return the operating point of ``(n,)`` healthy scores at a promised false-flag rate.

    Raises
    ------
    AlphaTooSmallError
        If ``alpha < 1 / (n + 1)``; the message says how many scans are needed.
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
        interval=rate_interval(n, alpha, confidence),
    )


def rate_interval(n_healthy: int, alpha: float, confidence: float = 0.95) -> Interval:
    """Return the central interval of the false-flag rate given one calibration, of Beta(l, n + 1 − l)."""
    rank = flag_rank(n_healthy, alpha)
    low, high = stats.beta.interval(confidence, rank, n_healthy + 1 - rank)
    return Interval(float(low), float(high))


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a rate of which ``count`` of ``n`` were seen (Clopper & Pearson 1934)."""
    if not 0 <= count <= n or n == 0:
        raise ValueError(f"expected a count between 0 and n with n ≥ 1, found {count} of {n}")
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, count, n - count + 1) if count > 0 else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, n - count) if count < n else 1.0
    return Interval(float(low), float(high))


def beta_binomial_band(n_test: int, n_healthy: int, alpha: float, confidence: float = 0.99) -> Interval:
    """Return the central band of the number of flags among ``n_test`` new healthy scans.

    Both the test scans and the calibration scans are a draw: the rate of the threshold is Beta(l, n + 1 − l),
    the flags given that rate are binomial, so the count is beta-binomial(m, l, n + 1 − l) (Marques 2024,
    *Universal distribution of the empirical coverage in split conformal prediction*, arXiv 2303.02770). This is
    the band for "is the promise kept?": the plain binomial pretends the threshold is known exactly and would
    call an honest calibration of 24 scans broken too often.

    Each tail outside holds at most ``(1 − confidence) / 2``.
    """
    rank = flag_rank(n_healthy, alpha)
    tail = (1 - confidence) / 2
    law = stats.betabinom(n_test, rank, n_healthy + 1 - rank)
    return Interval(float(law.ppf(tail)), float(law.ppf(1 - tail)))


def binomial_band(n_test: int, alpha: float, confidence: float = 0.99) -> Interval:
    """Return the central band of the number of flags if every healthy scan were flagged with chance alpha."""
    tail = (1 - confidence) / 2
    law = stats.binom(n_test, alpha)
    return Interval(float(law.ppf(tail)), float(law.ppf(1 - tail)))


@dataclass(frozen=True)
class PromiseCheck:
    """Whether the false flags seen on new healthy scans agree with the promise.

    Parameters
    ----------
    n_flagged, n_test
        False flags, and healthy scans looked at.
    rate, interval
        ``n_flagged / n_test`` and its 95 % Clopper–Pearson interval.
    band
        99 % beta-binomial band of the count; the verdict.
    plain_band
        99 % binomial band of the count at exactly alpha, for comparison.
    verdict
        Where the count lies relative to ``band``. ``"below"`` is a cautious threshold, ``"above"`` a promise
        that is broken.
    """

    alpha: float
    n_healthy: int
    n_flagged: int
    n_test: int
    rate: float
    interval: Interval
    band: Interval
    plain_band: Interval
    verdict: Literal["below", "inside", "above"]

    @property
    def kept(self) -> bool:
        """Whether there are no more false flags than the promise allows."""
        return self.verdict != "above"

    @property
    def inside_plain_band(self) -> bool:
        """Whether the count lies inside the plain binomial band."""
        return self.n_flagged in self.plain_band


def check_promise(
    n_flagged: int, n_test: int, n_healthy: int, alpha: float, confidence: float = 0.99
) -> PromiseCheck:
    """Compare ``n_flagged`` false flags among ``n_test`` new healthy scans with the promise of ``alpha``."""
    band = beta_binomial_band(n_test, n_healthy, alpha, confidence)
    verdict: Literal["below", "inside", "above"] = "inside"
    if n_flagged not in band:
        verdict = "above" if n_flagged > band.high else "below"
    return PromiseCheck(
        alpha=alpha,
        n_healthy=n_healthy,
        n_flagged=n_flagged,
        n_test=n_test,
        rate=n_flagged / n_test,
        interval=clopper_pearson(n_flagged, n_test),
        band=band,
        plain_band=binomial_band(n_test, alpha, confidence),
        verdict=verdict,
    )


def evidence_edges() -> Floats:
    """Return the thresholds ``(E,)`` at which healthy tails are counted: 0.001 to 1000, 0.7 % apart."""
    return np.geomspace(1e-3, 1e3, 2000)


def exceedance(values: npt.ArrayLike, edges: npt.ArrayLike) -> Floats:
    """Return the share ``(E,)`` of brain voxels whose evidence is above each edge.

    Parameters
    ----------
    values
        ``(V,)`` evidence of one healthy scan inside the brain.
    edges
        ``(E,)`` ascending thresholds.
    """
    evidence, thresholds = np.asarray(values).ravel(), np.asarray(edges)
    if evidence.size == 0:
        raise ValueError("a scan without a brain voxel has no evidence to count")
    n_edges_below = np.searchsorted(thresholds, evidence, side="left")  # edges strictly below each voxel
    above = np.cumsum(np.bincount(n_edges_below, minlength=len(thresholds) + 1)[::-1])[::-1][1:]
    return np.asarray(above / evidence.size, dtype=np.float64)


def voxel_threshold(exceedances: npt.ArrayLike, edges: npt.ArrayLike, voxel_alpha: float) -> float:
    """Return the evidence above which a voxel of a healthy scan lies with chance ``voxel_alpha`` at most.

    Parameters
    ----------
    exceedances
        ``(n, E)`` one row of :func:`exceedance` per healthy scan; scans count equally, whatever their volume.
    edges
        ``(E,)`` the thresholds they were counted at; the result is one of them, the smallest that will do.
    voxel_alpha
        False-positive rate over the brain voxels of healthy scans, e.g. 0.001.
    """
    pooled = np.asarray(exceedances, dtype=np.float64).mean(axis=0)
    enough = np.flatnonzero(pooled <= voxel_alpha)
    if enough.size == 0:
        raise ValueError(
            f"at the highest edge {np.asarray(edges)[-1]:g}, {pooled[-1]:.3g} of healthy voxels still exceed it, "
            f"more than the {voxel_alpha:g} asked for; give edges that reach the top of the evidence"
        )
    return float(np.asarray(edges)[enough[0]])
