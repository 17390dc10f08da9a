"""Map the intensities of one scanner to those of another, by percentiles of healthy brains.

The preprocessing sets the modes of grey and white matter of every scan to fixed values, but between and below them
the contrast of scanners differs, e.g. of deep grey matter. A few percentiles of the brain, averaged over healthy
scans of each scanner, are landmarks (Nyúl & Udupa 1999, "On standardizing the MR image intensity scale"). Here
there is one mapping for the scanner, not one for each scan, so that a lesion cannot change it:

    mapped(v) = v + d(v),    d linear between the landmarks from uᵢ, dᵢ = wᵢ − uᵢ, and constant beyond them

u are the landmarks of the scanner of the scan, w those of the other scanner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly.core.volume import FloatArray, MaskArray

MIN_STEP = 1e-6  # between landmarks, intensity units; smaller ones are made this large


@dataclass(frozen=True)
class IntensityMapping:
    """A piecewise linear, increasing mapping of intensities.

    Parameters
    ----------
    found, expected
        The same percentiles, in increasing order, of the scans to map and of those that they are mapped to.
    """

    found: tuple[float, ...]
    expected: tuple[float, ...]

    @property
    def inverse(self) -> IntensityMapping:
        """The mapping back."""
        return IntensityMapping(self.expected, self.found)

    def apply(self, voxels: FloatArray, mask: MaskArray) -> FloatArray:
        """Return a volume ``(I, J, K)`` with mapped intensities inside the mask, and the others unchanged."""
        found, expected = _increasing(self.found), _increasing(self.expected)
        shift = np.interp(voxels, found, expected - found)
        return np.where(mask, voxels + shift, voxels).astype(np.float32)


def _increasing(landmarks: tuple[float, ...]) -> FloatArray:
    """Return landmarks at least :data:`MIN_STEP` apart, so that the mapping has an inverse."""
    steps = MIN_STEP * np.arange(len(landmarks))
    return np.asarray(np.maximum.accumulate(np.array(landmarks) - steps) + steps)
