"""Split a scan into its smooth part and its fine grain, and keep the energy of the grain where tissue is changed.

Fine grain is noise and the finest detail: a scan minus its Gaussian smoothing with an SD of 0.7 voxels. A change of
the smooth part leaves the grain in place. It still changes how much the voxels differ from their own smoothing,
because the smooth part has some energy at that scale, too. :func:`keep_grain_energy` compensates this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from anomaly.core.smoothing import smooth_inside
from anomaly.core.volume import FloatArray, MaskArray

GRAIN_SD_VOXELS = 0.7  # SD of the Gaussian that separates the grain from the smooth part
COARSE_SD_VOXELS = 3.0  # SD of the Gaussian whose result the compensation leaves as it is
FIT_ROUNDS = 3  # the first fit does not know how the voxels are rounded

Floats = npt.NDArray[np.floating]
Band = tuple[FloatArray, tuple[float, float]]
"""Voxels ``(I, J, K)`` that are added to a scan, and the limits of the factor by which they are multiplied."""


def smooth_part(voxels: Floats, mask: MaskArray, sd_voxels: float = GRAIN_SD_VOXELS) -> FloatArray:
    """Return the Gaussian smoothing of voxels ``(I, J, K)`` inside a mask; outside, the voxels as they are."""
    smoothed = smooth_inside(voxels.astype(np.float32), mask, (sd_voxels, sd_voxels, sd_voxels))
    return np.asarray(np.where(mask, smoothed, voxels), dtype=np.float32)


def fine_grain(voxels: Floats, mask: MaskArray) -> FloatArray:
    """Return voxels ``(I, J, K)`` minus their smooth part; 0 outside the mask."""
    return np.asarray(voxels - smooth_part(voxels, mask), dtype=np.float32)


def grain_energy(voxels: Floats, mask: MaskArray, region: MaskArray) -> float:
    """Return the variance of the fine grain in a region ``(I, J, K)`` of the mask."""
    return float(fine_grain(voxels, mask)[region].var())


def middle_band(voxels: Floats, mask: MaskArray, weight: FloatArray) -> FloatArray:
    """Return voxels minus their coarse smoothing, where a weight ``(I, J, K)`` is above 0, with mean 0."""
    band = weight * (voxels - smooth_part(voxels, mask, COARSE_SD_VOXELS))
    return np.asarray(band - weight * (band.sum() / max(float(weight.sum()), 1e-6)), dtype=np.float32)


def keep_grain_energy(
    voxels: FloatArray,
    changed: FloatArray,
    bands: Sequence[Band],
    mask: MaskArray,
    lesion: MaskArray,
    as_stored: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """Return the changed scan with the energy that the fine grain of the lesion had before the change.

    Each band in turn is added with the factor, within its limits, that gives the energy or comes closest.

    Parameters
    ----------
    voxels, changed
        The scan ``(I, J, K)`` before and after the change.
    bands
        What may be added, such as a :func:`middle_band`.
    mask, lesion
        Foreground and lesion.
    as_stored
        Rounds and limits voxels as the scan stores them.
    """
    energy = goal = grain_energy(voxels, mask, lesion)
    grain = fine_grain(changed, mask)[lesion].astype(np.float64)
    grains = [fine_grain(band, mask)[lesion].astype(np.float64) for band, _ in bands]
    kept = as_stored(changed)
    for _ in range(FIT_ROUNDS):
        added, fitted = changed, grain
        for (band, limits), of_band in zip(bands, grains, strict=True):
            gain = float(np.clip(_gain(fitted, of_band, goal), *limits))
            added, fitted = added + np.float32(gain) * band, fitted + gain * of_band
        kept = as_stored(added)
        goal += energy - grain_energy(kept, mask, lesion)
    return kept


def _gain(grain: Floats, of_band: Floats, energy: float) -> float:
    """Return the k nearest to 0 for which the variance of ``grain + k · of_band`` is closest to the energy."""
    a, c = of_band.var(), grain.var() - energy
    b = np.mean((grain - grain.mean()) * (of_band - of_band.mean()))
    if a <= 1e-12:
        return 0.0
    root = np.sqrt(max(b * b - a * c, 0.0))
    return float(min(((root - b) / a, (-root - b) / a), key=abs))
