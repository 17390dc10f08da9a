"""Fit an affine transform between two images with the registration of ITK.

ITK gets RAS+ positions unchanged, on grids whose axes run along RAS+; it does not need to know the directions.
Everything runs in one thread over all voxels, or over a sample drawn with a fixed seed, so that the same input
gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention

from anomaly.core.volume import AffineArray, Geometry

Metric = Literal["mutual_information", "correlation"]
HISTOGRAM_BINS = 32
SAMPLING_SEED = 20240101


@dataclass(frozen=True, eq=False)
class FixedImage:
    """The image that a scan is fitted to.

    Parameters
    ----------
    image
        The template, float32, axes along RAS+.
    metric_mask
        Where the similarity metric is measured (uint8).
    rotation_centre_mm
        ``(3,)`` RAS+ centre of rotation and scaling.
    """

    image: sitk.Image
    metric_mask: sitk.Image
    rotation_centre_mm: npt.NDArray[np.float64]


def to_itk(voxels: npt.NDArray[Any], geometry: Geometry) -> sitk.Image:
    """Return an ITK image of ``(I, J, K)`` voxels whose grid runs along the RAS+ axes."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin([float(x) for x in geometry.affine[:3, 3]])
    return image


def from_itk(image: sitk.Image) -> npt.NDArray[Any]:
    """Return the voxels ``(I, J, K)`` of an ITK image."""
    return np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0))


def metric_value(fixed: FixedImage, moving: sitk.Image, start: AffineArray, metric: Metric) -> float:
    """Return the similarity metric of a transform, without fitting it: larger is better.

    Parameters
    ----------
    fixed, moving
        Template and scan.
    start
        ``(4, 4)`` template RAS+ mm → scan RAS+ mm.
    metric
        The similarity metric.
    """
    with single_threaded():
        method = _registration_method(fixed, metric)
        method.SetInitialTransform(_to_itk_transform(start, fixed.rotation_centre_mm), True)
        return -float(method.MetricEvaluate(fixed.image, moving))


def fit_affine(
    fixed: FixedImage,
    moving: sitk.Image,
    start: AffineArray,
    metric: Metric,
    step_mm: float,
    iterations: int,
    sampling: float = 1.0,
) -> tuple[AffineArray, float]:
    """Fit an affine transform (12 degrees of freedom) by gradient descent.

    Parameters
    ----------
    fixed, moving
        Template and scan.
    start
        ``(4, 4)`` template RAS+ mm → scan RAS+ mm to start from.
    metric
        The similarity metric: mutual information for any contrast; correlation if template and scan have the same.
    step_mm
        Length of the first step, millimetres; multiplied by 0.6 whenever the direction reverses.
    iterations
        Largest number of steps.
    sampling
        Share of the voxels that the metric uses, drawn with a fixed seed.

    Returns
    -------
    tuple
        The transform ``(4, 4)`` template → scan, and its similarity metric (larger is better).
    """
    transform = _to_itk_transform(start, fixed.rotation_centre_mm)
    with single_threaded():
        method = _registration_method(fixed, metric)
        _optimise(method, fixed, moving, transform, step_mm, iterations, sampling)
        return _from_itk_transform(transform), -float(method.GetMetricValue())


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit ITK to one thread, because with several the order of its sums, and so the last digit, varies."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _optimise(
    method: sitk.ImageRegistrationMethod,
    fixed: FixedImage,
    moving: sitk.Image,
    transform: sitk.AffineTransform,
    step_mm: float,
    iterations: int,
    sampling: float,
) -> None:
    """Optimise the transform in place."""
    if sampling < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(sampling, SAMPLING_SEED)
    method.SetOptimizerAsRegularStepGradientDescent(step_mm, 1e-3, iterations, 0.6, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, True)
    method.Execute(fixed.image, moving)


def _registration_method(fixed: FixedImage, metric: Metric) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    if metric == "mutual_information":
        method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    else:
        method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(fixed.metric_mask)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _to_itk_transform(matrix: AffineArray, centre: npt.NDArray[np.float64]) -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation((matrix[:3, :3] @ centre + matrix[:3, 3] - centre).tolist())
    return transform


def _from_itk_transform(transform: sitk.AffineTransform) -> AffineArray:
    matrix, centre = np.eye(4), np.array(transform.GetCenter())
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return matrix
