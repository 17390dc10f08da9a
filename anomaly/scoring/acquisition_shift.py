"""Test whether a scan was acquired like the training scans, by scanner and protocol, from its image alone.

The target false-positive rate holds for scans that are exchangeable with the healthy reference scans. A scan from
another scanner or protocol is not, and its file may not say where it comes from. Nine features of the preprocessed
brain show it: five percentiles of the intensities, the finest texture along each axis (noise and resolution; thick
slices show along one axis), and a coarser texture. All are medians and percentiles, which a lesion hardly changes.

A new scan is compared with the training scans by Hotelling's T² for one new observation. With n training scans of
mean x̄ and covariance S, p features, and a scan x from the same normal distribution:

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
COARSE_TEXTURE_LAG_VOXELS = 3
MIN_SCANS_PER_FEATURE = 2  # fewer training scans do not estimate their covariance well enough
MIN_TEXTURE = 1e-6  # texture of an image without any, so that its logarithm is finite
MIN_SD = 1e-6  # a feature with a smaller SD is constant


@dataclass(frozen=True)
class AcquisitionShift:
    """The difference between the acquisition of a scan and that of the training scans.

    Parameters
    ----------
    p_value
        Probability that a scan like the training scans differs from them as much.
    feature, deviation
        The feature that differs most, and by how many standard deviations of the training scans.
    """

    p_value: float
    feature: str
    deviation: float

    def __str__(self) -> str:
        return f"p = {self.p_value:.1g}; most unlike: {self.feature}, {self.deviation:+.1f} SD"


@dataclass(frozen=True, eq=False)
class AcquisitionReference:
    """The acquisition features of the training scans.

    Parameters
    ----------
    features
        float32 ``(n, 9)``, one row per scan, in the order of :data:`FEATURES`.
    """

    features: Features

    def compare(self, features: Features) -> AcquisitionShift | None:
        """Compare the features ``(9,)`` of a scan with those of the training scans.

        Returns
        -------
        AcquisitionShift or None
            None for too few training scans.
        """
        n = len(self.features)
        if n < MIN_SCANS_PER_FEATURE * len(FEATURES):
            return None
        training = self.features.astype(np.float64)  # in float32, rounding would make a constant feature vary
        mean, sd = training.mean(axis=0), training.std(axis=0, ddof=1)
        varying = sd > MIN_SD
        p = int(varying.sum())
        if p == 0:
            return None
        z = (features - mean)[varying] / sd[varying]
        correlation = np.corrcoef((training - mean)[:, varying], rowvar=False).reshape(p, p)
        t2 = n / (n + 1) * float(z @ np.linalg.pinv(correlation, hermitian=True) @ z)
        furthest = int(np.abs(z).argmax())
        p_value = float(stats.f.sf(t2 * (n - p) / (p * (n - 1)), p, n - p))
        return AcquisitionShift(p_value, np.array(FEATURES)[varying][furthest].item(), float(z[furthest]))


def acquisition_features(voxels: FloatArray, mask: MaskArray) -> Features:
    """Compute the nine features ``(9,)`` of a preprocessed volume ``(I, J, K)``, see :data:`FEATURES`.

    Textures are logarithms of medians over the voxels whose neighbours lie in the mask. The finest is the distance
    of a voxel from the mean of its two neighbours; the coarse one is the difference of voxels that lie
    :data:`COARSE_TEXTURE_LAG_VOXELS` apart.
    """
    percentiles = np.percentile(voxels[mask], PERCENTILES) if mask.any() else np.zeros(len(PERCENTILES))
    by_axis = [_textures(np.moveaxis(voxels, axis, 0), np.moveaxis(mask, axis, 0)) for axis in range(3)]
    fine, coarse = zip(*by_axis, strict=True)
    return np.array([*percentiles, *fine, np.mean(coarse)], dtype=np.float32)


def _textures(v: FloatArray, m: MaskArray) -> tuple[float, float]:
    """Return the finest and the coarse texture along the first axis."""
    lag = COARSE_TEXTURE_LAG_VOXELS
    fine = (v[1:-1] - (v[:-2] + v[2:]) * np.float32(0.5))[m[1:-1] & m[:-2] & m[2:]]
    coarse = (v[lag:] - v[:-lag])[m[lag:] & m[:-lag]]
    return _median_log(fine), _median_log(coarse)


def _median_log(values: FloatArray) -> float:
    return float(np.log(max(float(np.median(np.abs(values))) if values.size else 0.0, MIN_TEXTURE)))
