"""Correct the bias field of MR scans with N4 (Tustison et al., IEEE TMI 29 (2010) 1310-1320)."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention
from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.volume import FloatArray, MaskArray, Volume
from anomaly.preprocessing.affine_fit import from_itk, to_itk
from anomaly.preprocessing.grid import resample, resample_mask, world_grid


class BiasFieldSettings(Settings):
    """How the bias field of MR scans is corrected. CT has none and is not changed."""

    enabled: bool = Field(default=True, description="whether to correct the bias field")
    spacing_mm: float = Field(
        default=6.0,
        ge=2.0,
        le=10.0,
        description="voxel size of the grid on which the field, which is smooth, is estimated, millimetres",
    )
    iterations: tuple[int, ...] = Field(
        default=(40, 30),
        min_length=1,
        max_length=4,
        description="largest number of iterations per level, coarse to fine",
    )
    spline_mm: float = Field(
        default=120.0,
        ge=30.0,
        description="distance of spline knots at the coarsest level, millimetres; each level halves it",
    )


def correct_bias(volume: Volume, mask: MaskArray, settings: BiasFieldSettings) -> Volume:
    """Divide a scan by its estimated bias field.

    Parameters
    ----------
    volume
        MR scan; returned as it is when the correction is switched off or the scan is CT.
    mask
        Brain ``(I, J, K)`` on the scan's grid; the field is estimated inside and extrapolated smoothly.
    settings
        How the field is estimated.

    Returns
    -------
    Volume
        Same grid. The geometric mean of the field inside the brain is 1, so the overall brightness is kept.
    """
    if not settings.enabled or volume.modality.is_ct:
        return volume
    return volume.with_voxels(volume.voxels / estimate_field(volume, mask, settings))


def estimate_field(volume: Volume, mask: MaskArray, settings: BiasFieldSettings) -> FloatArray:
    """Estimate the bias field ``(I, J, K)`` on the scan's grid, a factor with geometric mean 1 in the brain."""
    coarse = world_grid(volume.geometry, settings.spacing_mm, margin_mm=settings.spacing_mm)
    inside = resample_mask(mask, volume.geometry, coarse)
    image = np.maximum(resample(volume.voxels, volume.geometry, coarse), 0)
    inside &= image > 0
    log_field = _n4(to_itk(image, coarse), to_itk(inside.astype(np.uint8), coarse), settings)
    log_field -= log_field[inside].mean()
    return np.exp(resample(log_field, coarse, volume.geometry))


def _n4(image: sitk.Image, inside: sitk.Image, settings: BiasFieldSettings) -> FloatArray:
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    corrector.SetMaximumNumberOfIterations(list(settings.iterations))
    corrector.SetNumberOfControlPoints(_control_points(image, settings.spline_mm))
    corrector.Execute(image, inside)
    return from_itk(corrector.GetLogBiasFieldAsImage(image)).astype(np.float32)


def _control_points(image: sitk.Image, spline_mm: float) -> list[int]:
    extents = [n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    return [max(4, int(np.ceil(extent / spline_mm)) + 3) for extent in extents]
