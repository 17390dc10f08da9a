"""Filters on maps, inside the brain only."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anomaly.core.volume import FloatArray, MaskArray


def smooth_inside(values: FloatArray, mask: MaskArray, sigma_voxels: tuple[float, float, float]) -> FloatArray:
    """Return ``values`` smoothed by a Gaussian that does not see beyond the mask.

    Normalised convolution (Knutsson & Westin 1993): smooth(values · mask) / smooth(mask), so that the edge of
    the brain is not dimmed by the background.

    Parameters
    ----------
    values, mask
        ``(I, J, K)``.
    sigma_voxels
        Standard deviation along I, J, K; all zero returns the values inside the mask.
    """
    inside = np.where(mask, values, np.float32(0))
    if not any(sigma_voxels):
        return inside
    box = _bounding_box(mask, margin=[int(np.ceil(4 * s)) for s in sigma_voxels])
    weight = ndimage.gaussian_filter(mask[box].astype(np.float32), sigma_voxels, truncate=3.0)
    total = ndimage.gaussian_filter(inside[box], sigma_voxels, truncate=3.0)
    smoothed = np.zeros_like(inside)
    smoothed[box] = np.where(mask[box], total / np.maximum(weight, 1e-6), 0)
    return smoothed


def median_inside(values: FloatArray, mask: MaskArray, width: int) -> FloatArray:
    """Return ``values`` after a ``width``³ median filter, 0 outside the mask; ``width`` 0 or 1 changes nothing."""
    filtered = ndimage.median_filter(values, size=width) if width > 1 else values
    return np.where(mask, filtered, np.float32(0)).astype(np.float32)


def eroded(mask: MaskArray, depth_mm: float, spacing: tuple[float, float, float]) -> MaskArray:
    """Return the voxels of ``mask`` at least ``depth_mm`` from its outside."""
    if depth_mm <= 0:
        return mask
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return np.asarray(mask & (depth > depth_mm))


def _bounding_box(mask: MaskArray, margin: list[int]) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask.astype(np.int8))
    if not found:
        return tuple(slice(0, n) for n in mask.shape)
    return tuple(
        slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(found[0], margin, mask.shape, strict=True)
    )
