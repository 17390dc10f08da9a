"""Evidence of shape and structure: where anatomy is unlike the healthy mean, whatever its intensities.

A tumour displaces tissue, and a lesion may differ from its surroundings by texture alone. Neither changes the
intensities much, so neither shows in a residual. Maps on the template grid measure them, larger = more anomalous:

    structure           −r: Pearson correlation of the scan and the mean healthy image in a window around the voxel
    texture             ln of the variance of the detail in a window, over that of the whole brain
    growth              how much the tissue takes up more space than in the mean healthy image
    growth_asymmetry    growth minus that at the mirrored position on the other side

They depend less on the contrast and noise of a scanner than intensities do. Like every map they are compared with
healthy scans voxel by voxel. Only what exceeds the healthy mean counts. Windows are Gaussian.

Sources: Avants et al. 2008, "Symmetric diffeomorphic image registration with cross-correlation", Medical Image
Analysis 12:26 (local correlation); :mod:`anomaly.preprocessing.deformation` (the Jacobian).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import numpy as np

from anomaly.core.smoothing import sigma_in_voxels, smooth_inside
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.preprocessing.deformation import local_growth

StructureMap = Literal["structure", "texture", "growth", "growth_asymmetry"]
STRUCTURE_MAPS: tuple[StructureMap, ...] = get_args(StructureMap)

WINDOW_MM = 6.0  # SD of the window of the local correlation and of the texture
DETAIL_VOXELS = (0.7, 2.0)  # SDs of the Gaussians between which detail lies: coarser than noise, finer than gyri
MIN_VARIANCE = 1e-5  # of the intensities in a window, whose typical value is 1e-3 and more
MIN_DETAIL = 1e-7  # variance of the detail in a window, whose typical value is 1e-4


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
    sigma = sigma_in_voxels(WINDOW_MM, grid)
    if "structure" in names:
        maps["structure"] = -local_correlation(voxels, mean_image, mask & (mean_image > 0), sigma)
    if "texture" in names:
        maps["texture"] = local_texture(voxels, mask, sigma)
    if {"growth", "growth_asymmetry"} & set(names):
        growth = local_growth(np.where(mask, voxels, np.float32(0)), mean_image, grid)
        maps["growth"] = np.where(mask, growth, np.float32(0))
        maps["growth_asymmetry"] = np.where(mask, growth - growth[::-1], np.float32(0))  # axis 0 is left to right
    return {name: maps[name] for name in names}


def local_correlation(
    first: FloatArray, second: FloatArray, mask: MaskArray, sigma_voxels: tuple[float, float, float]
) -> FloatArray:
    """Return the Pearson correlation of two images ``(I, J, K)`` in a Gaussian window around each voxel.

    Only voxels inside the mask count. The correlation is 0 outside it, and where an image is constant.
    """
    mean_a, mean_b, aa, bb, ab = (
        smooth_inside(values, mask, sigma_voxels)
        for values in (first, second, first * first, second * second, first * second)
    )
    variances = np.maximum(aa - mean_a**2, MIN_VARIANCE) * np.maximum(bb - mean_b**2, MIN_VARIANCE)
    return np.where(mask, (ab - mean_a * mean_b) / np.sqrt(variances), 0).astype(np.float32)


def local_texture(voxels: FloatArray, mask: MaskArray, sigma_voxels: tuple[float, float, float]) -> FloatArray:
    """Return ln of the variance of the detail in a Gaussian window, minus its median in the mask; 0 outside."""
    fine, coarse = (smooth_inside(voxels, mask, (sd, sd, sd)) for sd in DETAIL_VOXELS)
    variance = smooth_inside((fine - coarse) ** 2, mask, sigma_voxels)
    texture = np.log(np.maximum(variance, MIN_DETAIL))
    return np.where(mask, texture - np.median(texture[mask]), 0).astype(np.float32)


def structure_evidence(
    standardised: Mapping[StructureMap, FloatArray], weights: Mapping[StructureMap, float], mask: MaskArray
) -> FloatArray:
    """Return the weighted sum of what standardised maps ``(I, J, K)`` exceed the healthy mean by, 0 outside."""
    total = sum(weight * np.maximum(standardised[name], 0) for name, weight in weights.items())
    return np.where(mask, total, np.float32(0)).astype(np.float32)
