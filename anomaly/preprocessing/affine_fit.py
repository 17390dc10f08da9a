"""Fit an affine transform between two images: the one place that talks to ITK's registration.

ITK is told the RAS+ positions as they are, axes along the world; it need not know which way "left" is.
Everything runs on one thread over all voxels (or a sample drawn with a fixed seed), so that the same input gives
the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name its users know

from anomaly.core.volume import AffineArray, Geometry

Metric = Literal["mutual_information", "correlation"]
HISTOGRAM_BINS = 32
SAMPLING_SEED = 20240101


@dataclass(frozen=True, eq=False)
class FixedImage:
    """What a scan is fitted to.

    Parameters
    ----------
    image
        The template, float32, axes along the world.
    region
        Where the match is measured (uint8).
    centre_mm
        RAS+ point that rotations and scalings turn about.
    """

    image: sitk.Image
    region: sitk.Image
    centre_mm: npt.NDArray[np.float64]


def to_itk(voxels: npt.NDArray[Any], geometry: Geometry) -> sitk.Image:
    """Return an ITK image of ``(I, J, K)`` voxels whose grid runs along the RAS+ axes."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin([float(x) for x in geometry.affine[:3, 3]])
    return image


def from_itk(image: sitk.Image) -> npt.NDArray[Any]:
    """Return the voxels ``(I, J, K)`` of an ITK image."""
    return np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0))


def match(fixed: FixedImage, moving: sitk.Image, start: AffineArray, metric: Metric) -> float:
    """Return how well a transform matches, without improving it: larger is better."""
    with _one_thread():
        method = _method(fixed, metric)
        method.SetInitialTransform(_to_itk_transform(start, fixed.centre_mm), True)
        return -float(method.MetricEvaluate(fixed.image, moving))


def fit(
    fixed: FixedImage,
    moving: sitk.Image,
    start: AffineArray,
    metric: Metric,
    step_mm: float,
    iterations: int,
    sampling: float = 1.0,
) -> tuple[AffineArray, float]:
    """Improve an affine transform (12 degrees of freedom).

    Parameters
    ----------
    fixed, moving
        Template and scan.
    start
        ``(4, 4)`` template RAS+ mm → scan RAS+ mm to start from.
    metric
        What "match" means: mutual information for any contrast, correlation where the template looks like the scan.
    step_mm
        First step of the descent, millimetres; it shrinks by 0.6 whenever the direction turns.
    iterations
        At most so many steps.
    sampling
        Share of the voxels looked at, drawn with a fixed seed.

    Returns
    -------
    tuple
        The transform ``(4, 4)`` template → scan, and the match (larger is better).
    """
    transform = _to_itk_transform(start, fixed.centre_mm)
    with _one_thread():
        method = _method(fixed, metric)
        _descend(method, fixed, moving, transform, step_mm, iterations, sampling)
        return _from_itk_transform(transform), -float(method.GetMetricValue())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let ITK use one thread meanwhile: its metrics add up partial sums in the order in which threads finish."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _descend(
    method: sitk.ImageRegistrationMethod,
    fixed: FixedImage,
    moving: sitk.Image,
    transform: sitk.AffineTransform,
    step_mm: float,
    iterations: int,
    sampling: float,
) -> None:
    """Change the transform in place until the match no longer improves."""
    if sampling < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(sampling, SAMPLING_SEED)
    method.SetOptimizerAsRegularStepGradientDescent(step_mm, 1e-3, iterations, 0.6, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, True)
    method.Execute(fixed.image, moving)


def _method(fixed: FixedImage, metric: Metric) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    if metric == "mutual_information":
        method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    else:
        method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(fixed.region)
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
