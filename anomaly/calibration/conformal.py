"""Conformal p-values of scores, relative to held-out healthy scans.

If a new healthy scan is exchangeable with the n reference scans (same population, same scanner, none seen in
training), then ``P(p ≤ alpha) ≤ alpha`` for every alpha, whatever the model and however its scores are
distributed (Vovk, Gammerman & Shafer 2005, *Algorithmic Learning in a Random World*, prop. 2.8; Bates et al.
2023, *Testing for outliers with conformal p-values*, Ann. Statist. 51:149).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import AlphaTooSmallError

Floats = npt.NDArray[np.float64]


def p_values(scores: npt.ArrayLike, reference: npt.ArrayLike) -> Floats:
    """Return the conformal p-value of each score, ``(1 + #{healthy ≥ score}) / (n + 1)``.

    Parameters
    ----------
    scores
        ``(...)`` scores of new scans, higher = more anomalous.
    reference
        ``(n,)`` scores of held-out healthy scans. A tie counts as "at least as anomalous", so that the
        p-values are valid for discrete scores too.

    Returns
    -------
    ndarray
        ``(...)`` in ``[1 / (n + 1), 1]``.
    """
    ordered = sorted_reference(reference)
    at_least = len(ordered) - np.searchsorted(ordered, _checked(scores), side="left")
    return np.asarray((1 + at_least) / (len(ordered) + 1), dtype=np.float64)


def percentiles(scores: npt.ArrayLike, reference: npt.ArrayLike) -> Floats:
    """Return the percentage ``(...)``, 0 to 100, of healthy scans with a lower score."""
    ordered = sorted_reference(reference)
    below = np.searchsorted(ordered, _checked(scores), side="left")
    return np.asarray(100.0 * below / len(ordered), dtype=np.float64)


def minimum_alpha(n_healthy: int) -> float:
    """Return the smallest target false-positive rate for ``n_healthy`` reference scans, ``1 / (n + 1)``."""
    return 1.0 / (n_healthy + 1)


def required_healthy(alpha: float) -> int:
    """Return the smallest number n of reference scans with ``1 / (n + 1) ≤ alpha``."""
    _check_alpha(alpha)
    n = max(1, math.floor(1 / alpha) - 2)
    while minimum_alpha(n) > alpha:
        n += 1
    return n


def flag_rank(n_healthy: int, alpha: float) -> int:
    """Return l, the largest integer with ``l / (n + 1) ≤ alpha``.

    A scan is flagged if fewer than l healthy scans have at least its score. The division is the same as in the
    p-value, so that "p ≤ alpha" and "score > threshold" are exactly equivalent.

    Raises
    ------
    AlphaTooSmallError
        l would be 0; the message states how many healthy scans the alpha needs.
    """
    _check_alpha(alpha)
    rank = math.ceil((n_healthy + 1) * alpha) + 1
    while rank > 0 and rank / (n_healthy + 1) > alpha:
        rank -= 1
    if rank == 0:
        needed = required_healthy(alpha)
        raise AlphaTooSmallError(
            f"found {n_healthy} held-out healthy scans for a target false-positive rate of {alpha:g}; the smallest "
            f"possible target is {minimum_alpha(n_healthy):.4g} (1 / (n + 1)); use at least {needed} healthy scans "
            f"({needed - n_healthy} more), or an alpha of at least {minimum_alpha(n_healthy):.4g}"
        )
    return rank


def sorted_reference(reference: npt.ArrayLike) -> Floats:
    """Sort the reference scores ``(n,)`` in ascending order.

    Raises
    ------
    ValueError
        There are no scores, or some are not finite.
    """
    values = np.asarray(reference, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected reference scores of shape (n,) with n ≥ 1, found shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} reference scores are not finite")
    return np.sort(values)


def _checked(scores: npt.ArrayLike) -> npt.NDArray[Any]:
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("a score is NaN; a scan without a score has no p-value")
    return values


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"expected an alpha between 0 and 1, found {alpha!r}")
