"""Filter maps and masks of the brain."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anomaly.core.volume import FloatArray, MaskArray


def median_inside(values: FloatArray, mask: MaskArray, width: int) -> FloatArray:
    """Apply a ``width``³ median filter and set voxels outside the mask to 0; ``width`` 0 or 1 filters nothing."""
    filtered = ndimage.median_filter(values, size=width) if width > 1 else values
    return np.where(mask, filtered, np.float32(0)).astype(np.float32)


def eroded(mask: MaskArray, depth_mm: float, spacing: tuple[float, float, float]) -> MaskArray:
    """Return the voxels of ``mask`` that are more than ``depth_mm`` away from its outside."""
    if depth_mm <= 0:
        return mask
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return np.asarray(mask & (depth > depth_mm))
