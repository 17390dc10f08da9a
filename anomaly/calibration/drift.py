"""Has the population or the scanner changed since calibration?

The promise holds for scans exchangeable with the reference. New scans that were not flagged are compared with
the reference scans that would not have been flagged either: both are cut at the threshold, because the new ones
were selected by it. The two-sample Kolmogorov–Smirnov test of the scores *is* the test of the conformal p-values
against uniformity: both depend on ranks only, and the two-sample form accounts for the reference being finite.
The Mann–Whitney test is sharper for a plain shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from anomaly.calibration.conformal import p_values, sorted_reference
from anomaly.calibration.operating_point import beta_binomial_band

MIN_SCANS = 8  # below this no test has the power to say anything


@dataclass(frozen=True)
class DriftStatement:
    """What new scores say of the promise.

    Parameters
    ----------
    level
        ``"unknown"`` (too few scans), ``"none"`` seen, or ``"shift"``.
    message
        One or two sentences for the report.
    n_new, n_reference
        Scans compared, after the cut at the threshold.
    n_flagged, n_scored
        New scans above the threshold, and all new scans.
    uniformity_p
        Two-sample Kolmogorov–Smirnov; nan if too few scans.
    shift_p
        Mann–Whitney; nan if too few scans.
    median_p
        Median conformal p-value of the new scans within the cut reference; 0.5 where nothing has changed.
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
        The operating point.
    level
        Chance of a false alarm over both tests together (each is done at half of it).
    """
    new, healthy = np.asarray(new_scores, dtype=np.float64), sorted_reference(reference)
    looking_healthy, unflagged = new[new <= threshold], healthy[healthy <= threshold]
    n_flagged = int(new.size - looking_healthy.size)
    enough = min(looking_healthy.size, unflagged.size) >= MIN_SCANS
    nan = float("nan")
    uniformity = float(stats.ks_2samp(looking_healthy, unflagged).pvalue) if enough else nan
    shift = float(stats.mannwhitneyu(looking_healthy, unflagged).pvalue) if enough else nan
    median = float(np.median(p_values(looking_healthy, unflagged))) if looking_healthy.size else nan
    many = n_flagged > beta_binomial_band(new.size, healthy.size, alpha).high if new.size else False
    moved = enough and min(uniformity, shift) <= level / 2
    verdict: Literal["unknown", "none", "shift"] = "shift" if moved else "none" if enough else "unknown"
    return DriftStatement(
        level=verdict,
        message=" ".join(_sentences(verdict, median, n_flagged, int(new.size), alpha, many)),
        n_new=int(looking_healthy.size),
        n_reference=int(unflagged.size),
        n_flagged=n_flagged,
        n_scored=int(new.size),
        uniformity_p=uniformity,
        shift_p=shift,
        median_p=median,
    )


def _sentences(verdict: str, median_p: float, n_flagged: int, n: int, alpha: float, many: bool) -> list[str]:
    first = {
        "unknown": f"Too few scans look healthy to tell whether they resemble the calibration scans "
        f"(at least {MIN_SCANS} are needed).",
        "none": "The scans that look healthy score like the healthy scans of the calibration.",
        "shift": f"The scans that look healthy score {'higher' if median_p < 0.5 else 'lower'} or differently "
        "spread than the healthy scans of the calibration: the promised false-flag rate may not hold for them. "
        "Calibrate again with healthy scans from the same scanner.",
    }[verdict]
    second = (
        f"{n_flagged} of {n} scans are flagged, more than chance at {alpha:g} would flag among healthy scans: "
        "either many are ill or the scanner has changed."
    )
    return [first, second] if many else [first]
