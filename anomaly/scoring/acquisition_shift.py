"""Was a scan acquired like the scans a model learnt from? Scanner and protocol, told from the image alone.

The promise about false flags holds for scans that are exchangeable with the healthy reference. Another scanner
or protocol breaks it, and a file need not say where it comes from. Nine numbers of the preprocessed brain know:
five percentiles of its intensities, the finest texture along each axis (noise and resolution; thick slices show
along one axis), and a coarser texture. They are medians and percentiles, which a lesion hardly moves.

A new scan is compared with the training scans by Hotelling's T² for one new observation. With n training scans of
mean x̄ and covariance S, p features and a scan x from the same normal distribution:

    T² = n / (n + 1) · (x − x̄)ᵀ S⁻¹ (x − x̄),    T² (n − p) / (p (n − 1)) ~ F(p, n − p)

Source: Hotelling 1931, "The generalization of Student's ratio"; Montgomery, "Introduction to Statistical Quality
Control", ch. 11 (control chart for a future observation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from anomaly.core.volume import FloatArray, MaskArray

Features = npt.NDArray[np.float32]

PERCENTILES = (10, 25, 50, 75, 90)
FEATURES = (
    *(f"{percentile}th percentile of the intensities" for percentile in PERCENTILES),
    "finest texture left to right",
    "finest texture back to front",
    "finest texture bottom to top",
    "coarse texture",
)
COARSE_VOXELS = 3
SCANS_PER_FEATURE = 2  # fewer training scans say too little about their own spread
SMALLEST = 1e-6  # texture of an image without any


@dataclass(frozen=True)
class AcquisitionShift:
    """How a scan compares with the training scans.

    Parameters
    ----------
    p_value
        Chance that a scan like the training scans lies as far from them.
    feature, deviation
        The number that is furthest from theirs, and how far, in their standard deviations.
    """

    p_value: float
    feature: str
    deviation: float

    def __str__(self) -> str:
        return f"p = {self.p_value:.1g}; most unlike: {self.feature}, {self.deviation:+.1f} SD"


@dataclass(frozen=True, eq=False)
class AcquisitionReference:
    """What the training scans look like.

    Parameters
    ----------
    features
        float32 ``(n, 9)``, one row per scan, in the order of :data:`FEATURES`.
    """

    features: Features

    def compare(self, features: Features) -> AcquisitionShift | None:
        """Return how unlike the training scans a scan ``(9,)`` is; None where they are too few to say."""
        n = len(self.features)
        if n < SCANS_PER_FEATURE * len(FEATURES):
            return None
        learnt = self.features.astype(np.float64)  # rounding in float32 would make what is constant vary
        mean, sd = learnt.mean(axis=0), learnt.std(axis=0, ddof=1)
        vary = sd > SMALLEST
        p = int(vary.sum())
        if p == 0:
            return None
        z = (features - mean)[vary] / sd[vary]
        correlation = np.corrcoef((learnt - mean)[:, vary], rowvar=False).reshape(p, p)
        t2 = n / (n + 1) * float(z @ np.linalg.pinv(correlation, hermitian=True) @ z)
        furthest = int(np.abs(z).argmax())
        p_value = float(stats.f.sf(t2 * (n - p) / (p * (n - 1)), p, n - p))
        return AcquisitionShift(p_value, np.array(FEATURES)[vary][furthest].item(), float(z[furthest]))


def acquisition_features(voxels: FloatArray, mask: MaskArray) -> Features:
    """Return the nine numbers ``(9,)`` of a preprocessed volume ``(I, J, K)``, see :data:`FEATURES`.

    Textures are logarithms of medians over the voxels whose neighbours lie in the mask: of the distance of a voxel
    from the mean of its two neighbours, and of the difference of voxels that lie :data:`COARSE_VOXELS` apart.
    """
    percentiles = np.percentile(voxels[mask], PERCENTILES) if mask.any() else np.zeros(len(PERCENTILES))
    along = [_textures(np.moveaxis(voxels, axis, 0), np.moveaxis(mask, axis, 0)) for axis in range(3)]
    fine, coarse = zip(*along, strict=True)
    return np.array([*percentiles, *fine, np.mean(coarse)], dtype=np.float32)


def _textures(v: FloatArray, m: MaskArray) -> tuple[float, float]:
    """Return the finest and the coarse texture along the first axis."""
    lag = COARSE_VOXELS
    fine = (v[1:-1] - (v[:-2] + v[2:]) * np.float32(0.5))[m[1:-1] & m[:-2] & m[2:]]
    coarse = (v[lag:] - v[:-lag])[m[lag:] & m[:-lag]]
    return _median_log(fine), _median_log(coarse)


def _median_log(values: FloatArray) -> float:
    return float(np.log(max(float(np.median(np.abs(values))) if values.size else 0.0, SMALLEST)))
