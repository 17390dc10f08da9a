"""Register a brain to MNI152 space by an affine transform (12 degrees of freedom), and measure its quality."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention
from pydantic import Field

from anomaly.core.block_correlation import median_block_correlation
from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.overlap import dice
from anomaly.core.volume import AffineArray, Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.affine_fit import FixedImage, Metric, fit_affine, metric_value, to_itk
from anomaly.preprocessing.grid import resample, resample_mask, world_grid
from anomaly.preprocessing.template import Template, template_on

METRIC_MARGIN_MM = 6.0
"""The metric is measured in the template brain and this margin around it, so that its outline counts, too."""

INITIAL_STEPS_MM = {8.0: 4.0, 4.0: 2.0}  # grid spacing of a stage → first step of its optimiser
FINE_INITIAL_STEP_MM = 0.5
N_FITTED_STARTS = 3
QUALITY_SPACING_MM = 4.0


class RegistrationSettings(Settings):
    """How a brain is registered to the template, and which results are refused."""

    metric: Metric = Field(
        default="mutual_information", description="mutual_information suits every contrast; correlation is stricter"
    )
    fine_spacing_mm: float = Field(
        default=3.0, ge=1.5, le=4.0, description="voxel size of the last of three stages (8 mm, 4 mm, this)"
    )
    iterations: tuple[int, int, int] = Field(
        default=(50, 100, 20), description="largest number of steps of each stage"
    )
    min_overlap: float = Field(
        default=0.85,
        ge=0,
        le=1,
        description="refuse the scan if the Dice overlap of its aligned brain with the template's is smaller",
    )
    min_correlation: float = Field(
        default=0.3,
        ge=-1,
        le=1,
        description="refuse the scan if the median over its 16 mm blocks of the correlation with the template is "
        "smaller, whatever its sign",
    )
    max_rotation_deg: float = Field(
        default=60.0, gt=0, le=180, description="refuse the scan if the registration rotates it by more than this"
    )


@dataclass(frozen=True, eq=False)
class Registration:
    """The transform of a brain to template space, and its quality.

    Parameters
    ----------
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    overlap
        Dice overlap of the aligned brain mask with the template's.
    correlation
        Median block correlation of the aligned brain with the template, more than 4 mm below the surface, both at
        4 mm; a lesion hardly changes it.
    rotation_deg
        Angle between the orientation in the header and the one that was found.
    volume_ratio
        Volume of the template brain over that of the scan's brain, the determinant of the transform.
    """

    template_from_scan: AffineArray
    overlap: float
    correlation: float
    rotation_deg: float
    volume_ratio: float


def register(volume: Volume, mask: MaskArray, settings: RegistrationSettings) -> Registration:
    """Register the brain of a scan to the MNI152 brain.

    Of several initial transforms, including those for wrong orientations, the ones with the highest metric are
    fitted on a coarse grid. The best is then fitted on finer grids. The same scan gives the same bits.

    Parameters
    ----------
    volume
        The scan, on any grid.
    mask
        Brain ``(I, J, K)`` on the scan's grid.
    settings
        Metric, grids and iterations.
    """
    brain = volume.with_voxels(np.where(mask, volume.voxels, 0))
    starts = _sorted_by_metric(brain, _initial_transforms(volume.geometry, mask), settings)[:N_FITTED_STARTS]
    for spacing_mm, iterations in zip(
        (*INITIAL_STEPS_MM, settings.fine_spacing_mm), settings.iterations, strict=True
    ):
        starts = [_best_fit(brain, starts, spacing_mm, settings.metric, iterations)]
    return _assess(brain, mask, np.asarray(np.linalg.inv(starts[0]), dtype=np.float64))


def check_registration(found: Registration, settings: RegistrationSettings) -> None:
    """Refuse a scan whose registration is poor.

    Raises
    ------
    ScanRefusedError
        With code ``registration_overlap``, ``registration_correlation`` or ``registration_orientation``.
    """
    if found.rotation_deg > settings.max_rotation_deg:
        raise ScanRefusedError(
            "registration_orientation",
            f"a brain turned by {found.rotation_deg:.0f}° against the orientation in the header",
            f"at most {settings.max_rotation_deg:.0f}°",
            "correct the orientation in the header, or convert the scan from DICOM again",
        )
    for code, value, minimum in (
        ("registration_overlap", found.overlap, settings.min_overlap),
        ("registration_correlation", abs(found.correlation), settings.min_correlation),
    ):
        if value < minimum:
            raise ScanRefusedError(
                code,
                f"{code.replace('_', ' ')} of {value:.2f} with the MNI152 brain",
                f"at least {minimum:.2f}",
                "check that the scan shows a whole head or brain, and that modality and brain mask are correct",
            )


def fixed_image(template: Template, modality: Modality, rim_mm: float) -> FixedImage:
    """Return the template in the contrast of a modality, with a metric mask of its brain and a rim around it."""
    metric_mask = template.depth_mm() >= -rim_mm
    centre = template.geometry.to_world(np.argwhere(template.mask)).mean(0)
    image = to_itk(template.contrast(modality), template.geometry)
    return FixedImage(image, to_itk(metric_mask.astype(np.uint8), template.geometry), centre)


@lru_cache(maxsize=16)
def _fixed_image_on(spacing_mm: float, modality: Modality) -> FixedImage:
    return fixed_image(template_on(spacing_mm, multiple=1), modality, METRIC_MARGIN_MM)


def _initial_transforms(geometry: Geometry, mask: MaskArray) -> list[AffineArray]:
    """Return initial transforms template → scan: equal centres and volumes, for every rotation to try."""
    template = template_on(QUALITY_SPACING_MM, multiple=1)
    target = template.geometry.to_world(np.argwhere(template.mask)).mean(0)
    centre = geometry.to_world(np.argwhere(mask).mean(0))
    volume_ratio = mask.sum() * geometry.voxel_ml / (template.mask.sum() * template.geometry.voxel_ml)
    scale = float(np.clip(np.cbrt(volume_ratio), 0.6, 1.3))
    return [_centred_affine(target, centre, scale * rotation) for rotation in _rotations()]


def _rotations() -> list[npt.NDArray[np.float64]]:
    """Return rotations ``(3, 3)`` to try: small pitch angles, and the quarter and half turns of wrong headers."""
    pitches = [_axis_rotation(0, angle) for angle in (0.0, -20.0, 20.0)]
    wrong = [_axis_rotation(axis, angle) for axis in range(3) for angle in (90.0, 180.0, 270.0)]
    return pitches + wrong


def _axis_rotation(axis: int, degrees: float) -> npt.NDArray[np.float64]:
    i, j = [a for a in range(3) if a != axis]
    rotation = np.eye(3)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = cosine, -sine, sine, cosine
    return rotation


def _centred_affine(
    target: npt.NDArray[np.float64], centre: npt.NDArray[np.float64], linear: npt.NDArray[np.float64]
) -> AffineArray:
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre - linear @ target
    return matrix


def _sorted_by_metric(
    brain: Volume, starts: list[AffineArray], settings: RegistrationSettings
) -> list[AffineArray]:
    """Sort initial transforms by their metric, best first, without fitting them."""
    spacing_mm = next(iter(INITIAL_STEPS_MM))
    fixed, moving = _fixed_image_on(spacing_mm, brain.modality), _moving_image(brain, spacing_mm)
    return sorted(starts, key=lambda start: -metric_value(fixed, moving, start, settings.metric))


def _best_fit(
    brain: Volume, starts: list[AffineArray], spacing_mm: float, metric: Metric, iterations: int
) -> AffineArray:
    """Fit every initial transform on a grid of this spacing, and return the best result."""
    fixed, moving = _fixed_image_on(spacing_mm, brain.modality), _moving_image(brain, spacing_mm)
    step = INITIAL_STEPS_MM.get(spacing_mm, FINE_INITIAL_STEP_MM)
    fitted = (fit_affine(fixed, moving, start, metric, step, iterations) for start in starts)
    return max(fitted, key=lambda pair: pair[1])[0]


def _moving_image(brain: Volume, spacing_mm: float) -> sitk.Image:
    grid = world_grid(brain.geometry, spacing_mm)
    return to_itk(resample(brain.voxels, brain.geometry, grid), grid)


def _assess(brain: Volume, mask: MaskArray, template_from_scan: AffineArray) -> Registration:
    template = template_on(QUALITY_SPACING_MM, multiple=1)
    scan_from_template = np.linalg.inv(template_from_scan)
    moved = resample_mask(mask, brain.geometry, template.geometry, scan_from_template)
    image = resample(brain.voxels, brain.geometry, template.geometry, scan_from_template)
    expected, inside = template.contrast(brain.modality), template.depth_mm() > QUALITY_SPACING_MM
    return Registration(
        template_from_scan=template_from_scan,
        overlap=dice(moved, template.mask),
        correlation=median_block_correlation(image, expected, inside, template.geometry.spacing),
        rotation_deg=_rotation_deg(template_from_scan),
        volume_ratio=float(np.linalg.det(template_from_scan[:3, :3])),
    )


def _rotation_deg(matrix: AffineArray) -> float:
    """Return the angle of the rotation in a matrix, by polar decomposition."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))
