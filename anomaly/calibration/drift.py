"""Test whether the population or the scanner has changed since calibration.

The target FPR holds for scans exchangeable with the reference. New scans that were not flagged are compared with
the reference scans that would not be flagged either. Both samples are truncated at the threshold, because the new
scans were selected by it. The two-sample Kolmogorov–Smirnov test of the scores is equivalent to a test of the
conformal p-values for uniformity: both depend on ranks only, and the two-sample form accounts for the finite
reference. The Mann–Whitney test has more power to detect a shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from anomaly.calibration.conformal import p_values, sorted_reference
from anomaly.calibration.operating_point import beta_binomial_band

MIN_SCANS = 8  # with fewer scans no test has enough power


@dataclass(frozen=True)
class DriftStatement:
    """Result of the comparison of new scans with the healthy reference.

    Parameters
    ----------
    level
        ``"unknown"`` (too few scans), ``"none"`` or ``"shift"``.
    message
        One or two sentences for the report.
    n_new, n_reference
        Number of compared scans, that is, those below the threshold.
    n_flagged, n_scored
        Number of new scans above the threshold, and of all new scans.
    uniformity_p
        p-value of the two-sample Kolmogorov–Smirnov test; nan with too few scans.
    shift_p
        p-value of the Mann–Whitney test; nan with too few scans.
    median_p
        Median conformal p-value of the new scans relative to the truncated reference; about 0.5 without a change.
    """

    level: Literal["unknown", "none", "shift"]
    message: str
    n_new: int
    n_reference: int
    n_flagged: int
    n_scored: int
    uniformity_p: float
    shift_p: float
    median_p: float


def check_drift(
    new_scores: npt.ArrayLike, reference: npt.ArrayLike, alpha: float, threshold: float, level: float = 0.01
) -> DriftStatement:
    """Compare the scores of new scans ``(m,)`` with the healthy reference ``(n,)``.

    Parameters
    ----------
    alpha, threshold
        Target FPR and threshold of the operating point.
    level
        Significance level of both tests together; each uses half of it.
    """
    new, healthy = np.asarray(new_scores, dtype=np.float64), sorted_reference(reference)
    not_flagged, reference_below = new[new <= threshold], healthy[healthy <= threshold]
    n_flagged = int(new.size - not_flagged.size)
    enough = min(not_flagged.size, reference_below.size) >= MIN_SCANS
    nan = float("nan")
    uniformity = float(stats.ks_2samp(not_flagged, reference_below).pvalue) if enough else nan
    shift = float(stats.mannwhitneyu(not_flagged, reference_below).pvalue) if enough else nan
    median = float(np.median(p_values(not_flagged, reference_below))) if not_flagged.size else nan
    excess = n_flagged > beta_binomial_band(new.size, healthy.size, alpha).high if new.size else False
    shifted = enough and min(uniformity, shift) <= level / 2
    found: Literal["unknown", "none", "shift"] = "shift" if shifted else "none" if enough else "unknown"
    return DriftStatement(
        level=found,
        message=" ".join(_sentences(found, median, n_flagged, int(new.size), alpha, excess)),
        n_new=int(not_flagged.size),
        n_reference=int(reference_below.size),
        n_flagged=n_flagged,
        n_scored=int(new.size),
        uniformity_p=uniformity,
        shift_p=shift,
        median_p=median,
    )


def _sentences(level: str, median_p: float, n_flagged: int, n: int, alpha: float, excess: bool) -> list[str]:
    first = {
        "unknown": "Too few scans are not flagged to compare them with the calibration scans (at least "
        f"{MIN_SCANS} are needed).",
        "none": "The scans that are not flagged score like the healthy calibration scans.",
        "shift": f"The scans that are not flagged score {'higher' if median_p < 0.5 else 'lower'}, or with another "
        "spread, than the healthy calibration scans: the false-positive rate may differ from its target. Calibrate "
        "again with healthy scans from the same scanner.",
    }[level]
    second = (
        f"{n_flagged} of {n} scans are flagged, more than expected among healthy scans at a target of {alpha:g}: "
        "either many are abnormal or the scanner has changed."
    )
    return [first, second] if excess else [first]
