"""Evidence of shape and structure: where anatomy is unlike the healthy mean, whatever its intensities.

A tumour displaces tissue, and a lesion may differ from its surroundings by texture alone. Neither changes the
intensities much, so neither shows in a residual. Maps on the template grid measure them, larger = more anomalous:

    structure           −r: Pearson correlation of the scan and the mean healthy image in a Gaussian window around
                        the voxel
    growth              ln |Jacobian| of a non-linear registration of the mean healthy image to the scan: how much
                        the tissue takes up more space than in the healthy mean
    growth_asymmetry    growth minus that at the mirrored position on the other side

They hardly depend on the contrast and noise of a scanner. Like every map they are compared with healthy scans voxel
by voxel. Only what exceeds the healthy mean counts.

Sources: Avants et al. 2008, "Symmetric diffeomorphic image registration with cross-correlation", Medical Image
Analysis 12:26 (local correlation); :mod:`anomaly.preprocessing.deformation` (the Jacobian).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.preprocessing.deformation import local_growth

StructureMap = Literal["structure", "growth", "growth_asymmetry"]
STRUCTURE_MAPS: tuple[StructureMap, ...] = get_args(StructureMap)

WINDOW_MM = 4.0  # SD of the Gaussian window of the local correlation
MIN_VARIANCE = 1e-5  # of the intensities in a window, whose typical value is 1e-3 and more
MIN_WEIGHT = 1e-3  # share of a window that lies in the brain


def structure_maps(
    voxels: FloatArray, mask: MaskArray, mean_image: FloatArray, grid: Geometry, names: Collection[StructureMap]
) -> dict[str, FloatArray]:
    """Compute the named maps of a scan, float32 ``(I, J, K)``, 0 outside the mask.

    Parameters
    ----------
    voxels, mask
        Preprocessed scan and its brain ``(I, J, K)`` on ``grid``.
    mean_image
        Mean of healthy scans ``(I, J, K)`` on the same grid; 0 where few brains reach.
    names
        The maps to compute: growth takes about half a second at 2 mm.
    """
    maps: dict[str, FloatArray] = {}
    if "structure" in names:
        sigma = [WINDOW_MM / spacing for spacing in grid.spacing]
        maps["structure"] = -local_correlation(voxels, mean_image, mask & (mean_image > 0), sigma)
    if {"growth", "growth_asymmetry"} & set(names):
        growth = local_growth(mean_image, np.where(mask, voxels, np.float32(0)), grid)
        maps["growth"] = np.where(mask, growth, np.float32(0))
        maps["growth_asymmetry"] = np.where(mask, growth - growth[::-1], np.float32(0))  # axis 0 is left to right
    return {name: maps[name] for name in names}


def local_correlation(
    first: FloatArray, second: FloatArray, mask: MaskArray, sigma_voxels: Collection[float]
) -> FloatArray:
    """Return the Pearson correlation of two images ``(I, J, K)`` in a Gaussian window around each voxel.

    Only voxels inside the mask count. The correlation is 0 outside it, and where an image is constant.
    """
    weight = np.maximum(_window_sum(mask.astype(np.float32), sigma_voxels), MIN_WEIGHT)
    a, b = (np.where(mask, image, np.float32(0)).astype(np.float32) for image in (first, second))
    mean_a, mean_b, aa, bb, ab = (_window_sum(x, sigma_voxels) / weight for x in (a, b, a * a, b * b, a * b))
    variances = np.maximum(aa - mean_a**2, MIN_VARIANCE) * np.maximum(bb - mean_b**2, MIN_VARIANCE)
    return np.where(mask, (ab - mean_a * mean_b) / np.sqrt(variances), 0).astype(np.float32)


def structure_evidence(
    standardised: Mapping[str, FloatArray], weights: Mapping[StructureMap, float], mask: MaskArray
) -> FloatArray:
    """Return the weighted sum of what standardised maps ``(I, J, K)`` exceed the healthy mean by, 0 outside."""
    total = sum(weight * np.maximum(standardised[name], 0) for name, weight in weights.items())
    return np.where(mask, total, np.float32(0)).astype(np.float32)


def _window_sum(values: FloatArray, sigma_voxels: Collection[float]) -> FloatArray:
    return np.asarray(ndimage.gaussian_filter(values, tuple(sigma_voxels), mode="constant", truncate=3.0))
