"""Extract the brain from an MR head by fitting the MNI152 brain to it.

The template has no head, so the metric is measured only in its brain and a narrow dark rim around it (CSF and
skull). Correlation is then highest for bright brain inside and darkness just outside. The coarse stages use the
head without its scalp, which would otherwise pull the fit outwards. The brain mask is that of the template,
transformed to the scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention
from pydantic import Field
from scipy import ndimage

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.affine_fit import FixedImage, fit_affine, metric_value, to_itk
from anomaly.preprocessing.components import largest_component
from anomaly.preprocessing.grid import resample, world_grid
from anomaly.preprocessing.registration import fixed_image
from anomaly.preprocessing.template import template_on

SEARCH_SPACING_MM, MIDDLE_SPACING_MM, FINE_SPACING_MM = 8.0, 4.0, 2.0
N_FITTED_STARTS = 4
PITCHES_DEG, INITIAL_SCALES = (-15.0, 0.0, 15.0), (0.78, 0.9)  # of the initial poses
UP_SHIFTS_MM, FORWARD_SHIFTS_MM = (-12.0, 0.0), (-6.0, 6.0)
UPPER_HEAD_HEIGHT_MM = 110.0  # the centre of the head is taken of this much below its top, without the neck
SCALP_TO_BRAIN_MM = 12.0  # from the top of the head to the top of the brain
CLIP_PERCENTILE = 98.0  # brighter voxels, mostly fat, are clipped


class ExtractMrSettings(Settings):
    """How the brain is extracted from an MR head."""

    peel_mm: float = Field(
        default=7.0,
        ge=0,
        le=15,
        description="depth below the surface of the head that the coarse stages ignore (scalp), millimetres",
    )
    coarse_rim_mm: float = Field(
        default=4.0,
        ge=2,
        le=15,
        description="coarse stages: width of the rim around the template brain in the metric, millimetres",
    )
    fine_rim_mm: float = Field(
        default=3.0, ge=1, le=15, description="last stage: width of the rim around the template brain, millimetres"
    )
    iterations: tuple[int, int, int] = Field(
        default=(50, 60, 40), description="largest number of steps at 8, 4 and 2 mm"
    )
    sampling: float = Field(
        default=0.15, gt=0, le=1, description="share of the voxels the last stage uses (always the same ones)"
    )
    grow_mm: float = Field(
        default=2.0,
        ge=-5,
        le=5,
        description="margin of the mask around the template brain, for the CSF around the brain, millimetres",
    )


@dataclass(frozen=True, eq=False)
class _Head:
    """A head on an isotropic grid along RAS+ axes.

    Parameters
    ----------
    image
        float32 ``(I, J, K)``, bright fat clipped.
    without_scalp
        The image with the scalp set to 0.
    inside
        Filled mask of the head.
    geometry
        The grid.
    """

    image: FloatArray
    without_scalp: FloatArray
    inside: MaskArray
    geometry: Geometry


def extract_mr(volume: Volume, settings: ExtractMrSettings) -> MaskArray:
    """Find the brain mask ``(I, J, K)`` of an MR head, on the scan's grid, with the CSF around the brain."""
    scan_from_template = fit_head(volume, settings)
    template = template_on(FINE_SPACING_MM, multiple=1)
    depth = resample(template.depth_mm(), template.geometry, volume.geometry, np.linalg.inv(scan_from_template),
                     outside=-99.0)  # fmt: skip
    return np.asarray(depth >= -settings.grow_mm)


def fit_head(volume: Volume, settings: ExtractMrSettings) -> AffineArray:
    """Fit the template brain to a head; return the affine ``(4, 4)`` template RAS+ mm → scan RAS+ mm.

    Three stages: a grid of initial poses at 8 mm, the best of which are fitted; 4 mm, both without scalp; then 2 mm
    with scalp.
    """
    volume = _coarsened(volume)
    head = _head(volume, settings.peel_mm)
    best = _search(head, volume.modality, settings)
    fixed = _fixed_image_on(MIDDLE_SPACING_MM, volume.modality, settings.coarse_rim_mm)
    best, _ = fit_affine(
        fixed, to_itk(head.without_scalp, head.geometry), best, "correlation", 2.0, settings.iterations[1]
    )
    grid = world_grid(volume.geometry, FINE_SPACING_MM)
    fine = np.minimum(resample(volume.voxels, volume.geometry, grid), head.image.max())
    fixed = _fixed_image_on(FINE_SPACING_MM, volume.modality, settings.fine_rim_mm)
    best, _ = fit_affine(
        fixed, to_itk(fine, grid), best, "correlation", 1.0, settings.iterations[2], settings.sampling
    )
    return best


def _coarsened(volume: Volume) -> Volume:
    """Resample a scan much finer than 2 mm to 2 mm, because every stage would filter all its voxels again."""
    if min(volume.geometry.spacing) > FINE_SPACING_MM / 1.5:
        return volume
    grid = world_grid(volume.geometry, FINE_SPACING_MM, margin_mm=0.0)
    return volume.with_voxels(resample(volume.voxels, volume.geometry, grid), grid)


def _head(volume: Volume, peel_mm: float) -> _Head:
    grid = world_grid(volume.geometry, MIDDLE_SPACING_MM)
    image = resample(volume.voxels, volume.geometry, grid)
    image = np.minimum(image, np.percentile(image[image > 0.3 * image.mean()], CLIP_PERCENTILE))
    inside = _head_foreground(image)
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=MIDDLE_SPACING_MM)[1:-1, 1:-1, 1:-1]
    return _Head(image, np.where(depth > peel_mm, image, 0), inside, grid)


def _head_foreground(image: FloatArray) -> MaskArray:
    positive = image[image > 0]
    if positive.size == 0:
        raise ScanRefusedError("empty_scan", "no voxel above zero", "an image of a head", "send it again")
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(positive[None, None, :]))
    closed = ndimage.binary_closing(np.pad(image > 0.5 * otsu.GetThreshold(), 5), iterations=4)[5:-5, 5:-5, 5:-5]
    return np.asarray(ndimage.binary_fill_holes(largest_component(closed)))


def _search(head: _Head, modality: Modality, settings: ExtractMrSettings) -> AffineArray:
    """Return the best pose on the coarse grid, after fitting the initial poses with the highest metric."""
    grid = world_grid(head.geometry, SEARCH_SPACING_MM, margin_mm=0.0)
    moving = to_itk(resample(head.without_scalp, head.geometry, grid), grid)
    fixed = _fixed_image_on(SEARCH_SPACING_MM, modality, settings.coarse_rim_mm)
    poses = sorted(_initial_poses(head), key=lambda pose: -metric_value(fixed, moving, pose, "correlation"))
    fitted = [
        fit_affine(fixed, moving, pose, "correlation", 4.0, settings.iterations[0])
        for pose in poses[:N_FITTED_STARTS]
    ]
    return max(fitted, key=lambda pair: pair[1])[0]


def _initial_poses(head: _Head) -> list[AffineArray]:
    """Return transforms template → head that place the template brain below the top of the head."""
    template = template_on(MIDDLE_SPACING_MM, multiple=1)
    brain = template.geometry.to_world(np.argwhere(template.mask))
    centre, height = brain.mean(0), brain[:, 2].max() - brain[:, 2].mean()
    middle, top = _upper_head(head)
    return [
        _pose(
            centre,
            middle + np.array([0.0, forward, top - SCALP_TO_BRAIN_MM + up - height * size - middle[2]]),
            pitch,
            size,
        )
        for pitch, size, up, forward in product(PITCHES_DEG, INITIAL_SCALES, UP_SHIFTS_MM, FORWARD_SHIFTS_MM)
    ]


def _upper_head(head: _Head) -> tuple[npt.NDArray[np.float64], float]:
    """Return the centre of the upper head (RAS+ mm) and the height of its top (mm)."""
    slices = np.flatnonzero(head.inside.sum((0, 1)) > 10)
    bottom = max(0, int(slices.max() - UPPER_HEAD_HEIGHT_MM / MIDDLE_SPACING_MM))
    upper = np.argwhere(head.inside[:, :, bottom:]) + np.array([0, 0, bottom])
    return head.geometry.to_world(upper.mean(0)), float(head.geometry.to_world((0, 0, slices.max()))[2])


def _pose(
    centre: npt.NDArray[np.float64], place: npt.NDArray[np.float64], pitch_deg: float, size: float
) -> AffineArray:
    cosine, sine = np.cos(np.radians(pitch_deg)), np.sin(np.radians(pitch_deg))
    pose = np.eye(4)
    pose[:3, :3] = size * np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    pose[:3, 3] = place - pose[:3, :3] @ centre
    return pose


@lru_cache(maxsize=16)
def _fixed_image_on(spacing_mm: float, modality: Modality, rim_mm: float) -> FixedImage:
    return fixed_image(template_on(spacing_mm, multiple=1), modality, rim_mm)
