"""Split a scan into its smooth part and its fine grain, and keep the energy of the grain where tissue is changed.

Fine grain is noise and the finest detail: a scan minus its Gaussian smoothing with an SD of 0.7 voxels. A change of
the smooth part leaves the grain in place. It still changes how much the voxels differ from their own smoothing,
because the smooth part has some energy at that scale, too. :func:`keep_grain_energy` compensates this in the next
coarser band, and leaves the grain as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomaly.core.volume import FloatArray, MaskArray

GRAIN_SD_VOXELS = 0.7  # SD of the Gaussian that separates the grain from the smooth part
COARSE_SD_VOXELS = 3.0  # SD of the Gaussian whose result the compensation leaves as it is
GAIN_LIMITS = (-1.0, 3.0)
FIT_ROUNDS = 3  # the first fit does not know the rounding of the voxels

Floats = npt.NDArray[np.floating]


def smooth_part(voxels: Floats, mask: MaskArray, sd_voxels: float = GRAIN_SD_VOXELS) -> FloatArray:
    """Return the Gaussian smoothing of voxels ``(I, J, K)`` inside a mask; outside, the voxels as they are."""
    weights = ndimage.gaussian_filter(mask.astype(np.float32), sd_voxels)
    total = ndimage.gaussian_filter(np.where(mask, voxels, 0).astype(np.float32), sd_voxels)
    return np.asarray(np.where(mask, total / np.where(mask, weights, 1), voxels), dtype=np.float32)


def fine_grain(voxels: Floats, mask: MaskArray) -> FloatArray:
    """Return voxels ``(I, J, K)`` minus their smooth part; 0 outside the mask."""
    return np.asarray(voxels - smooth_part(voxels, mask), dtype=np.float32)


def grain_energy(voxels: Floats, mask: MaskArray, region: MaskArray) -> float:
    """Return the variance of the fine grain in a region ``(I, J, K)`` of the mask."""
    return float(fine_grain(voxels, mask)[region].var())


def keep_grain_energy(
    voxels: FloatArray,
    changed: FloatArray,
    structure: FloatArray,
    mask: MaskArray,
    lesion: MaskArray,
    weight: FloatArray,
    as_stored: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """Return the changed scan with the energy that the fine grain of the lesion had before the change.

    The band between the grain and :data:`COARSE_SD_VOXELS` is made weaker or stronger by one factor. The mean
    intensity of the lesion does not change.

    Parameters
    ----------
    voxels, changed
        The scan ``(I, J, K)`` before and after the change.
    structure
        The smooth part whose band is made weaker or stronger.
    mask, lesion
        Foreground and lesion.
    weight
        Where the scan was changed, 0 to 1.
    as_stored
        Rounds and clips voxels as the scan stores them.
    """
    band = weight * (structure - smooth_part(structure, mask, COARSE_SD_VOXELS))
    band = band - weight * (band.sum() / max(float(weight.sum()), 1e-6))
    energy = grain_energy(voxels, mask, lesion)
    grain, of_band = (fine_grain(part, mask)[lesion].astype(np.float64) for part in (changed, band))
    goal, result = energy, as_stored(changed)
    for _ in range(FIT_ROUNDS):
        result = as_stored(np.asarray(changed + _gain(grain, of_band, goal) * band, dtype=np.float32))
        goal += energy - grain_energy(result, mask, lesion)
    return result


def _gain(grain: Floats, of_band: Floats, energy: float) -> float:
    """Return the k nearest to 0 for which the variance of ``grain + k · of_band`` is closest to the energy."""
    a, c = of_band.var(), grain.var() - energy
    b = np.mean((grain - grain.mean()) * (of_band - of_band.mean()))
    if a <= 1e-12:
        return 0.0
    root = np.sqrt(max(b * b - a * c, 0.0))
    nearest = min(((root - b) / a, (-root - b) / a), key=abs)
    return float(np.clip(nearest, *GAIN_LIMITS))
