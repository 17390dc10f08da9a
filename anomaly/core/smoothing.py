"""Smooth a volume inside a mask, without influence from outside it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anomaly.core.volume import FloatArray, Geometry, MaskArray

KERNEL_RADIUS_SIGMAS = 3.0
BOX_MARGIN_SIGMAS = 4
MIN_WEIGHT = 1e-6


def smooth_inside(values: FloatArray, mask: MaskArray, sigma_voxels: tuple[float, float, float]) -> FloatArray:
    """Smooth ``values`` with a Gaussian, inside the mask only.

    Normalised convolution (Knutsson & Westin 1993): smooth(values · mask) / smooth(mask). The background therefore
    does not lower the values at the edge of the brain.

    Parameters
    ----------
    values, mask
        ``(I, J, K)``.
    sigma_voxels
        Standard deviation along I, J, K; with all zero the values inside the mask stay as they are.
    """
    inside = np.where(mask, values, np.float32(0))
    if not any(sigma_voxels):
        return inside
    box = _bounding_box(mask, margin=[int(np.ceil(BOX_MARGIN_SIGMAS * s)) for s in sigma_voxels])
    weight = ndimage.gaussian_filter(mask[box].astype(np.float32), sigma_voxels, truncate=KERNEL_RADIUS_SIGMAS)
    total = ndimage.gaussian_filter(inside[box], sigma_voxels, truncate=KERNEL_RADIUS_SIGMAS)
    smoothed = np.zeros_like(inside)
    smoothed[box] = np.where(mask[box], total / np.maximum(weight, MIN_WEIGHT), 0)
    return smoothed


def sigma_in_voxels(sigma_mm: float, grid: Geometry) -> tuple[float, float, float]:
    """Return the standard deviation of a Gaussian in voxels along I, J, K."""
    i, j, k = (sigma_mm / s for s in grid.spacing)
    return i, j, k


def _bounding_box(mask: MaskArray, margin: list[int]) -> tuple[slice, ...]:
    found = ndimage.find_objects(mask.astype(np.int8))
    if not found:
        return tuple(slice(0, n) for n in mask.shape)
    return tuple(
        slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(found[0], margin, mask.shape, strict=True)
    )
