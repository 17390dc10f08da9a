"""Voxel-level metrics of one scan, inside the brain. They are averaged over subjects elsewhere.

The main Dice uses the threshold that was calibrated on healthy scans. Metrics whose threshold was chosen with the
lesion masks are called oracle metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomaly.core.overlap import dice
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.evaluation.detection import Floats, average_precision_of, counts_at_positives

SIZE_BINS_ML = (0.0, 1.0, 5.0, 20.0, float("inf"))  # lesion volumes
MIN_OVERLAP = 0.1  # flagged fraction of a lesion that counts as found
_CONNECTED_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class LesionFound:
    """One connected lesion of a scan.

    Parameters
    ----------
    volume_ml
        Volume in millilitres.
    overlap
        Fraction of the lesion that is flagged, 0 to 1.
    """

    volume_ml: float
    overlap: float


@dataclass(frozen=True, eq=False)
class ScanLocalisation:
    """Localisation in one scan with a lesion.

    Parameters
    ----------
    average_precision
        Voxel AP inside the brain.
    dice
        Dice of the flagged mask, at the calibrated threshold; None without a calibration.
    oracle_dice
        Highest Dice over all thresholds for this scan.
    dice_curve
        ``(E,)`` Dice at each of :func:`dice_thresholds`.
    lesions
        The connected lesions.
    lesion_ml, flagged_ml
        Volumes in millilitres.
    """

    average_precision: float
    dice: float | None
    oracle_dice: float
    dice_curve: Floats = field(repr=False)
    lesions: tuple[LesionFound, ...]
    lesion_ml: float
    flagged_ml: float | None


def localise(
    evidence: FloatArray, lesion: MaskArray, brain: MaskArray, flagged: MaskArray | None, voxel_ml: float
) -> ScanLocalisation:
    """Compare the evidence and the flagged mask of one scan with its lesion mask.

    Parameters
    ----------
    evidence
        float32 ``(I, J, K)``, higher = more anomalous.
    lesion
        The lesion mask; voxels outside ``brain`` count as missed.
    brain
        Voxels for which evidence was computed.
    flagged
        The mask of voxels above the calibrated threshold; None without a calibration.
    voxel_ml
        Volume of a voxel in millilitres.
    """
    return ScanLocalisation(
        average_precision=voxel_average_precision(evidence, lesion, brain),
        dice=None if flagged is None else dice(flagged, lesion),
        oracle_dice=oracle_dice(evidence, lesion, brain),
        dice_curve=dice_curve(evidence, lesion, brain),
        lesions=() if flagged is None else lesions_found(flagged, lesion, voxel_ml),
        lesion_ml=float(lesion.sum() * voxel_ml),
        flagged_ml=None if flagged is None else float(flagged.sum() * voxel_ml),
    )


def voxel_average_precision(evidence: FloatArray, lesion: MaskArray, brain: MaskArray) -> float:
    """Return the average precision of the voxels inside the brain; nan for an empty lesion.

    Lesion voxels outside the brain mask count as missed: they lower the recall.
    """
    inside = lesion & brain
    if not lesion.any():
        return float("nan")
    if not inside.any():
        return 0.0
    found = average_precision_of(evidence[inside], evidence[brain & ~lesion])
    return found * float(inside.sum() / lesion.sum())


def dice_at(evidence: FloatArray, lesion: MaskArray, brain: MaskArray, threshold: float) -> float:
    """Return the Dice between the lesion and the brain voxels with evidence above a threshold."""
    return dice((evidence > threshold) & brain, lesion)


def oracle_dice(evidence: FloatArray, lesion: MaskArray, brain: MaskArray) -> float:
    """Return the highest Dice over all thresholds for one scan; an oracle metric."""
    inside = lesion & brain
    if not inside.any():
        return 0.0
    _, true, false = counts_at_positives(evidence[inside], evidence[brain & ~lesion])
    return float(np.max(2 * true / (true + false + lesion.sum())))


def dice_thresholds() -> Floats:
    """Return the thresholds ``(E,)`` of Dice curves: 0.001 to 1000, 1.2 % apart."""
    return np.geomspace(1e-3, 1e3, 1200)


def dice_curve(evidence: FloatArray, lesion: MaskArray, brain: MaskArray) -> Floats:
    """Return the Dice ``(E,)`` at each of :func:`dice_thresholds`."""
    thresholds = dice_thresholds()
    true, false = (_n_above(evidence[chosen], thresholds) for chosen in (lesion & brain, brain & ~lesion))
    return np.asarray(2 * true / np.maximum(true + false + lesion.sum(), 1), dtype=np.float64)


def oracle_threshold(curves: Sequence[Floats]) -> tuple[float, int]:
    """Return the threshold with the highest mean Dice over scans, and its index: the literature's "best Dice".

    It is chosen with the lesion masks of the test set, which makes it an oracle threshold.
    """
    best = int(np.mean(curves, axis=0).argmax())
    return float(dice_thresholds()[best]), best


def lesions_found(flagged: MaskArray, lesion: MaskArray, voxel_ml: float) -> tuple[LesionFound, ...]:
    """Return each 26-connected lesion with the fraction of it that is flagged."""
    labels, n = ndimage.label(lesion, structure=_CONNECTED_26)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    hits = np.bincount(labels[flagged], minlength=n + 1)[1:]
    return tuple(LesionFound(float(s * voxel_ml), float(h / s)) for s, h in zip(sizes, hits, strict=True))


def size_bins(bins_ml: Sequence[float] = SIZE_BINS_ML) -> list[str]:
    """Return the names of the size bins."""
    return [f"{low:g} to {high:g} ml" if np.isfinite(high) else f"over {low:g} ml" for low, high in _pairs(bins_ml)]


def recall_by_size(
    lesions: Sequence[LesionFound], bins_ml: Sequence[float] = SIZE_BINS_ML, min_overlap: float = MIN_OVERLAP
) -> dict[str, tuple[int, int]]:
    """Count found lesions and all lesions in each size bin ``(low, high]``.

    Parameters
    ----------
    min_overlap
        Fraction of a lesion that must be flagged for it to count as found, so that a single voxel is not enough.
    """
    result = {}
    for name, (low, high) in zip(size_bins(bins_ml), _pairs(bins_ml), strict=True):
        chosen = [lesion for lesion in lesions if low < lesion.volume_ml <= high]
        result[name] = (sum(lesion.overlap >= min_overlap for lesion in chosen), len(chosen))
    return result


def _pairs(bins_ml: Sequence[float]) -> list[tuple[float, float]]:
    return list(pairwise(bins_ml))


def _n_above(values: npt.NDArray[np.floating], thresholds: Floats) -> Floats:
    """Count the values ``(V,)`` strictly above each of the ascending thresholds ``(E,)``."""
    n_below = np.searchsorted(thresholds, values, side="left")
    counts = np.bincount(n_below, minlength=thresholds.size + 1)
    return np.cumsum(counts[::-1])[::-1][1:].astype(np.float64)
