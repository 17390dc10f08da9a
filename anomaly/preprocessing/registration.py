"""Find where a brain lies in MNI152 space: an affine transform (12 degrees of freedom), and how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name its users know
from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.affine_fit import FixedImage, Metric, fit, match, to_itk
from anomaly.preprocessing.grid import resample, resample_mask, world_grid
from anomaly.preprocessing.template import Template, template_on

RIM_MM = 6.0
"""The match is measured in the template's brain and this far around it: its outline counts, too."""

STEPS_MM = {8.0: 4.0, 4.0: 2.0}
FINE_STEP_MM = 0.5
FITTED_STARTS = 3
QUALITY_SPACING_MM = 4.0


class RegistrationSettings(Settings):
    """How a brain is brought to the template, and when the result is not believed."""

    metric: Metric = Field(
        default="mutual_information", description="mutual_information suits every contrast; correlation is stricter"
    )
    fine_spacing_mm: float = Field(
        default=3.0, ge=1.5, le=4.0, description="grid of the last of three stages (8 mm, 4 mm, this)"
    )
    iterations: tuple[int, int, int] = Field(default=(50, 100, 20), description="most steps per stage")
    min_overlap: float = Field(
        default=0.85,
        ge=0,
        le=1,
        description="refuse the scan when the aligned brain overlaps the template's less (Dice)",
    )
    min_correlation: float = Field(
        default=0.3,
        ge=-1,
        le=1,
        description="refuse the scan when it resembles the template less (absolute correlation)",
    )
    max_rotation_deg: float = Field(
        default=60.0, gt=0, le=180, description="refuse the scan when its header is off by more than this rotation"
    )


@dataclass(frozen=True, eq=False)
class Registration:
    """Where a brain lies in template space.

    Parameters
    ----------
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    overlap
        Dice of the aligned brain mask and the template's.
    correlation
        With the template's contrast inside its brain (4 mm under the surface and deeper), both seen at 4 mm.
    rotation_deg
        How far the brain is turned against what the header says.
    volume_ratio
        Volume of the template's brain over the scan's, by the transform.
    """

    template_from_scan: AffineArray
    overlap: float
    correlation: float
    rotation_deg: float
    volume_ratio: float


def register(volume: Volume, mask: MaskArray, settings: RegistrationSettings) -> Registration:
    """Fit a scan's brain to the MNI152 brain.

    Of several starts, wrong orientations among them, the most promising are fitted on a coarse grid; the best
    goes on to finer grids. The same scan gives the same bits.

    Parameters
    ----------
    volume
        The scan, on any grid.
    mask
        Brain ``(I, J, K)`` on the scan's grid.
    settings
        How.
    """
    brain = volume.with_voxels(np.where(mask, volume.voxels, 0))
    starts = _promising(brain, _starts(volume.geometry, mask), settings)[:FITTED_STARTS]
    for spacing_mm, iterations in zip((*STEPS_MM, settings.fine_spacing_mm), settings.iterations, strict=True):
        starts = [_improve(brain, starts, spacing_mm, settings.metric, iterations)]
    return _judge(brain, mask, np.asarray(np.linalg.inv(starts[0]), dtype=np.float64))


def refuse_if_misplaced(found: Registration, settings: RegistrationSettings) -> None:
    """Refuse the scan when its registration is not to be believed.

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
    for code, value, least in (
        ("registration_overlap", found.overlap, settings.min_overlap),
        ("registration_correlation", abs(found.correlation), settings.min_correlation),
    ):
        if value < least:
            raise ScanRefusedError(
                code,
                f"{code.replace('_', ' ')} of {value:.2f} with the MNI152 brain",
                f"at least {least:.2f}",
                "look at the scan: is it a whole head or brain, of the modality stated, with a fitting brain mask?",
            )


def fixed_image(template: Template, modality: Modality, rim_mm: float) -> FixedImage:
    """Return what scans of a modality are fitted to: the template, and where the match is measured."""
    region = template.depth_mm() >= -rim_mm
    centre = template.geometry.to_world(np.argwhere(template.mask)).mean(0)
    image = to_itk(template.contrast(modality), template.geometry)
    return FixedImage(image, to_itk(region.astype(np.uint8), template.geometry), centre)


@lru_cache(maxsize=16)
def _fixed(spacing_mm: float, modality: Modality) -> FixedImage:
    return fixed_image(template_on(spacing_mm, multiple=1), modality, RIM_MM)


def _starts(geometry: Geometry, mask: MaskArray) -> list[AffineArray]:
    """Return transforms template → scan: centres aligned, size matched, turned as headers can be wrong."""
    template = template_on(QUALITY_SPACING_MM, multiple=1)
    target = template.geometry.to_world(np.argwhere(template.mask)).mean(0)
    centre = geometry.to_world(np.argwhere(mask).mean(0))
    volume_ratio = mask.sum() * geometry.voxel_ml / (template.mask.sum() * template.geometry.voxel_ml)
    scale = float(np.clip(np.cbrt(volume_ratio), 0.6, 1.3))
    return [_about(target, centre, scale * rotation) for rotation in _rotations()]


def _rotations() -> list[npt.NDArray[np.float64]]:
    """Return small nods (pitch) and the quarter and half turns of wrong headers, as ``(3, 3)`` rotations."""
    nods = [_turn(0, angle) for angle in (0.0, -20.0, 20.0)]
    wrong = [_turn(axis, angle) for axis in range(3) for angle in (90.0, 180.0, 270.0)]
    return nods + wrong


def _turn(axis: int, degrees: float) -> npt.NDArray[np.float64]:
    i, j = [a for a in range(3) if a != axis]
    rotation = np.eye(3)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = cosine, -sine, sine, cosine
    return rotation


def _about(
    target: npt.NDArray[np.float64], centre: npt.NDArray[np.float64], linear: npt.NDArray[np.float64]
) -> AffineArray:
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre - linear @ target
    return matrix


def _promising(brain: Volume, starts: list[AffineArray], settings: RegistrationSettings) -> list[AffineArray]:
    """Return the starts, best match first, as they are."""
    spacing_mm = next(iter(STEPS_MM))
    fixed, moving = _fixed(spacing_mm, brain.modality), _moving(brain, spacing_mm)
    return sorted(starts, key=lambda start: -match(fixed, moving, start, settings.metric))


def _improve(
    brain: Volume, starts: list[AffineArray], spacing_mm: float, metric: Metric, iterations: int
) -> AffineArray:
    """Return the best of the starts after fitting them on a grid of this spacing."""
    fixed, moving = _fixed(spacing_mm, brain.modality), _moving(brain, spacing_mm)
    step = STEPS_MM.get(spacing_mm, FINE_STEP_MM)
    fitted = (fit(fixed, moving, start, metric, step, iterations) for start in starts)
    return max(fitted, key=lambda pair: pair[1])[0]


def _moving(brain: Volume, spacing_mm: float) -> sitk.Image:
    grid = world_grid(brain.geometry, spacing_mm)
    return to_itk(resample(brain.voxels, brain.geometry, grid), grid)


def _judge(brain: Volume, mask: MaskArray, template_from_scan: AffineArray) -> Registration:
    template = template_on(QUALITY_SPACING_MM, multiple=1)
    scan_from_template = np.linalg.inv(template_from_scan)
    moved = resample_mask(mask, brain.geometry, template.geometry, scan_from_template)
    image = resample(brain.voxels, brain.geometry, template.geometry, scan_from_template)
    expected, inside = template.contrast(brain.modality), template.depth_mm() > QUALITY_SPACING_MM
    return Registration(
        template_from_scan=template_from_scan,
        overlap=dice(moved, template.mask),
        correlation=_correlation(image[inside], expected[inside]),
        rotation_deg=_rotation_deg(template_from_scan),
        volume_ratio=float(np.linalg.det(template_from_scan[:3, :3])),
    )


def dice(a: MaskArray, b: MaskArray) -> float:
    """Return the Dice overlap of two masks, 0 to 1; 0 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 0.0


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def _rotation_deg(matrix: AffineArray) -> float:
    """Return the angle of the rotation nearest to a matrix (polar decomposition)."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return float(np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))))
