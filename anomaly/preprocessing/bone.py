"""Replace bone and calcification in CT, and the tissue next to them, by the brain nearby.

A voxel at the edge of bone contains a little of it, most of all in thick slices, and has the density of fresh
blood (50 to 90 HU). It would look like haemorrhage along the skull and around calcifications. Interpolation to the
template grid would spread bone further. The brain mask does not change, so blood between brain and skull stays in
the scan: its part next to the bone gets the density of the rest.

    f(v) = (G ∗ (t · x) + ε m) / (G ∗ t + ε),    t = 1 for voxels of the mask that are far enough from bone

G is a Gaussian and m the median of the trusted voxels x, which f approaches where no such voxel is near.

Source: normalised convolution, Knutsson & Westin 1993.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy import ndimage

from anomaly.core.config import Settings
from anomaly.core.volume import FloatArray, MaskArray, Volume

MEDIAN_WEIGHT = 1e-3  # ε: weight of the median of the brain where voxels are replaced


class BoneSettings(Settings):
    """How bone and calcification are replaced in CT. MR is not changed."""

    margin_mm: float = Field(
        default=0.0,
        ge=0,
        le=8,
        description="replace bone and calcification, and the tissue that is closer to them than this, by the brain "
        "nearby, millimetres; 0 = nothing is replaced",
    )
    min_hu: float = Field(default=100.0, gt=0, description="smallest density of bone and calcification, HU")
    fill_mm: float = Field(
        default=2.0, gt=0, le=20, description="SD of the Gaussian that averages the brain nearby, millimetres"
    )


def replace_bone(volume: Volume, mask: MaskArray, settings: BoneSettings) -> Volume:
    """Replace every voxel that is bone, is close to bone, or is outside the brain.

    Parameters
    ----------
    volume
        CT in Hounsfield units; MR is returned as it is.
    mask
        Brain ``(I, J, K)`` on the scan's grid.
    settings
        What counts as bone, and how far its influence reaches.
    """
    if not settings.margin_mm or not volume.modality.is_ct:
        return volume
    trusted = mask & _far_from_bone(volume, settings)
    if not trusted.any():
        return volume
    sigma = [settings.fill_mm / spacing for spacing in volume.geometry.spacing]
    return volume.with_voxels(np.where(trusted, volume.voxels, _nearby(volume.voxels, trusted, sigma)))


def _far_from_bone(volume: Volume, settings: BoneSettings) -> MaskArray:
    bone = volume.voxels > settings.min_hu
    if not bone.any():
        return ~bone
    return np.asarray(ndimage.distance_transform_edt(~bone, sampling=volume.geometry.spacing) > settings.margin_mm)


def _nearby(voxels: FloatArray, trusted: MaskArray, sigma_voxels: list[float]) -> FloatArray:
    """Return the mean of the trusted voxels around each voxel."""
    median = float(np.median(voxels[trusted]))
    weight = ndimage.gaussian_filter(trusted.astype(np.float32), sigma_voxels)
    total = ndimage.gaussian_filter(np.where(trusted, voxels, np.float32(0)), sigma_voxels)
    return np.asarray((total + MEDIAN_WEIGHT * median) / (weight + MEDIAN_WEIGHT), dtype=np.float32)
