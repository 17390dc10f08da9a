"""Scan-level detection: AUROC, average precision, sensitivity at a specificity, false-positive rate.

Labels are True for scans with a lesion; a higher score is more anomalous. The functions return the same values as
scikit-learn, but run faster, because a bootstrap calls them thousands of times.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the area under the ROC curve; nan if a class is missing.

    The probability that an abnormal scan scores higher than a healthy one, ties counting half: the Mann–Whitney
    form (Hanley & McNeil 1982).
    """
    is_abnormal, values = _checked(labels, scores)
    n_abnormal, n_healthy = int(is_abnormal.sum()), int((~is_abnormal).sum())
    if n_abnormal == 0 or n_healthy == 0:
        return float("nan")
    ranks = stats.rankdata(values)
    return float((ranks[is_abnormal].sum() - n_abnormal * (n_abnormal + 1) / 2) / (n_abnormal * n_healthy))


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the average precision, ``Σ (R_k − R_{k−1}) P_k`` over distinct scores; nan if none is abnormal."""
    is_abnormal, values = _checked(labels, scores)
    return average_precision_of(values[is_abnormal], values[~is_abnormal])


def average_precision_of(positives: npt.NDArray[np.floating], negatives: npt.NDArray[np.floating]) -> float:
    """Return the average precision of positive ``(P,)`` against negative ``(N,)`` scores.

    This is the mean, over positives, of the precision at their own score. Only the positives are sorted, which is
    fast if they are few, as lesion voxels are.
    """
    if positives.size == 0:
        return float("nan")
    _, true, false = counts_at_positives(positives, negatives)
    gained = np.diff(true, prepend=0)
    return float(np.sum(gained * true / (true + false)) / positives.size)


def counts_at_positives(
    positives: npt.NDArray[np.floating], negatives: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.floating], Floats, Floats]:
    """Return the distinct positive scores, descending, and how many scores of each class are at least as high.

    Returns
    -------
    thresholds, true, false
        Each ``(T,)``; between two thresholds only false positives change.
    """
    ascending, counts = np.unique(positives, return_counts=True)
    reached = np.searchsorted(ascending, negatives, side="right")  # positive scores at or below each negative
    false = np.cumsum(np.bincount(reached, minlength=ascending.size + 1)[::-1])[:-1]
    return ascending[::-1], np.cumsum(counts[::-1]).astype(np.float64), false.astype(np.float64)


def sensitivity_at_specificity(labels: npt.ArrayLike, scores: npt.ArrayLike, specificity: float) -> float:
    """Return the sensitivity at the lowest threshold whose specificity is at least ``specificity``.

    The threshold is chosen on the same scans, so the result is optimistic. The calibrated operating point is
    unbiased.
    """
    is_abnormal, values = _checked(labels, scores)
    healthy = np.sort(values[~is_abnormal])
    if healthy.size == 0 or not is_abnormal.any():
        return float("nan")
    allowed = int(np.floor((1 - specificity) * healthy.size + 1e-9))
    if allowed >= healthy.size:
        return 1.0
    return float(np.mean(values[is_abnormal] > healthy[healthy.size - 1 - allowed]))


METRICS: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "sensitivity_at_90_specificity": lambda labels, scores: sensitivity_at_specificity(labels, scores, 0.90),
    "sensitivity_at_95_specificity": lambda labels, scores: sensitivity_at_specificity(labels, scores, 0.95),
}
"""Scan-level metrics by name: ``(labels, scores) → value``."""


def roc_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return false and true positive rates ``(K,)`` for decreasing thresholds, from (0, 0) to (1, 1)."""
    _, false, true = _cumulative(labels, scores)
    return np.append(0, false / max(false[-1], 1)), np.append(0, true / max(true[-1], 1))


def precision_recall_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return recall and precision ``(K,)`` for decreasing thresholds; the first point is repeated at recall 0."""
    _, false, true = _cumulative(labels, scores)
    recall, precision = true / max(true[-1], 1), true / (true + false)
    return np.append(0, recall), np.append(precision[0], precision)


def false_positive_rates(p_values: npt.ArrayLike, alphas: npt.ArrayLike) -> Floats:
    """Return the observed false-positive rate ``(A,)`` at each alpha from the p-values of healthy scans."""
    found = np.asarray(p_values, dtype=np.float64)
    return np.asarray((found[:, None] <= np.asarray(alphas)[None, :]).mean(axis=0), dtype=np.float64)


def _cumulative(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return distinct scores, descending, with the number of healthy and abnormal scans at or above each."""
    is_abnormal, values = _checked(labels, scores)
    ascending, rank = np.unique(values, return_inverse=True)
    counts = [np.bincount(rank[chosen], minlength=ascending.size)[::-1] for chosen in (~is_abnormal, is_abnormal)]
    return ascending[::-1], np.cumsum(counts[0]).astype(np.float64), np.cumsum(counts[1]).astype(np.float64)


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Flags, Floats]:
    is_abnormal, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    if is_abnormal.shape != values.shape or is_abnormal.ndim != 1:
        raise ValueError(
            f"expected labels and scores of one shape (n,), found {is_abnormal.shape} and {values.shape}"
        )
    return is_abnormal, values
