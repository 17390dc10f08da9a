"""Even out the slow brightness drift of an MR coil (N4, Tustison et al., IEEE TMI 29 (2010) 1310-1320)."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its users know
from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.volume import FloatArray, MaskArray, Volume
from anomaly.preprocessing.affine_fit import from_itk, to_itk
from anomaly.preprocessing.grid import resample, resample_mask, world_grid


class BiasFieldSettings(Settings):
    """How the bias field of MR scans is estimated. CT has none and is left alone."""

    enabled: bool = Field(default=True, description="whether to correct at all")
    spacing_mm: float = Field(
        default=6.0,
        ge=2.0,
        le=10.0,
        description="the field is estimated on this grid; it is smooth, so coarse will do",
    )
    iterations: tuple[int, ...] = Field(
        default=(40, 30), min_length=1, max_length=4, description="steps per level, from coarse to fine splines"
    )
    spline_mm: float = Field(
        default=120.0, ge=30.0, description="distance of the coarsest level's spline knots; each level halves it"
    )


def correct_bias(volume: Volume, mask: MaskArray, settings: BiasFieldSettings) -> Volume:
    """Return the scan divided by its estimated bias field.

    Parameters
    ----------
    volume
        MR scan; returned as it is when the correction is switched off or the scan is CT.
    mask
        Brain ``(I, J, K)`` on the scan's grid; the field is estimated inside and continued smoothly outside.
    settings
        How.

    Returns
    -------
    Volume
        Same grid; the mean of the field inside the brain is 1, so the overall brightness stays.
    """
    if not settings.enabled or volume.modality.is_ct:
        return volume
    return volume.with_voxels(volume.voxels / estimate_field(volume, mask, settings))


def estimate_field(volume: Volume, mask: MaskArray, settings: BiasFieldSettings) -> FloatArray:
    """Return the bias field ``(I, J, K)`` on the scan's grid: 1 where brightness is as it should be."""
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
