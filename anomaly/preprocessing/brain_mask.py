"""Find the brain mask of a scan, the region that the models are applied to."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from scipy import ndimage

from anomaly.core.config import Settings
from anomaly.core.errors import ConfigError, ScanRefusedError
from anomaly.core.volume import FloatArray, MaskArray, Volume
from anomaly.preprocessing.components import largest_component
from anomaly.preprocessing.extract_command import extract_with_command
from anomaly.preprocessing.extract_ct import ExtractCtSettings, extract_ct
from anomaly.preprocessing.extract_mr import ExtractMrSettings, extract_mr
from anomaly.preprocessing.grid import resample, world_grid

Method = Literal["auto", "extracted", "registration", "ct", "command"]

WORKING_SPACING_MM = 4.0
EXTRACTED_MAX_ML = 2300.0  # filled foreground of an extracted brain; a head with scalp is larger
EXTRACTED_MIN_BACKGROUND_SHARE = 0.2
SHELL_DEPTH_MM = (12.0, 16.0)  # at this depth a head has dark skull, and an extracted brain has brain
SHELL_MIN_RATIO = 0.6  # median intensity in the shell over that at the centre
BONE_HU = 300.0
BONE_MIN_ML = 20.0
FOREGROUND_THRESHOLD = 0.03  # share of the 95th percentile of positive intensities


class BrainMaskSettings(Settings):
    """How the brain mask is found."""

    method: Method = Field(
        default="auto",
        description="auto: keep scans that are already extracted; else ct for CT, command if one is given, or "
        "registration; extracted: every scan is already brain only",
    )
    command: str = Field(
        default="", description='external program, e.g. "mri_synthstrip -i {input} -m {mask}"; empty: none'
    )
    command_timeout_s: float = Field(default=600.0, gt=0, description="time limit of the external program, seconds")
    min_brain_ml: float = Field(
        default=500.0, ge=0, description="refuse the scan when less brain is found, millilitres"
    )
    max_brain_ml: float = Field(
        default=2500.0, gt=0, description="refuse the scan when more brain is found, millilitres"
    )
    mr: ExtractMrSettings = Field(default_factory=ExtractMrSettings, description="brain extraction of MR heads")
    ct: ExtractCtSettings = Field(default_factory=ExtractCtSettings, description="brain extraction of CT heads")

    @property
    def external_command(self) -> str:
        """The program that may be run for a scan; ``""`` for none."""
        return self.command if self.method in {"auto", "command"} else ""


def find_brain(volume: Volume, settings: BrainMaskSettings) -> tuple[MaskArray, bool]:
    """Find the brain mask of a scan.

    Returns
    -------
    tuple
        The mask ``(I, J, K)`` on the scan's grid, and whether the scan was already brain-extracted.

    Raises
    ------
    ScanRefusedError
        With code ``empty_scan`` or ``brain_volume`` if there is no brain, or one of implausible volume.
    """
    background = background_value(volume.voxels)
    if not (volume.voxels != background).any():
        raise ScanRefusedError(
            "empty_scan", "one value in every voxel", "an image of a head or brain", "send it again"
        )
    extracted = settings.method == "extracted" or (settings.method == "auto" and is_extracted(volume))
    mask = foreground(volume) if extracted else _extract(volume, settings)
    _check_size(float(mask.sum()) * volume.geometry.voxel_ml, settings)
    return mask, extracted


def is_extracted(volume: Volume) -> bool:
    """Return whether a scan is already brain-extracted.

    An extracted scan has a constant background and a filled foreground no larger than a brain, and 12 to 16 mm
    below its surface there is brain, where a head has dark skull. An extracted CT has no bone.
    """
    background = background_value(volume.voxels)
    if float((volume.voxels == background).mean()) < EXTRACTED_MIN_BACKGROUND_SHARE:
        return False
    grid = world_grid(volume.geometry, WORKING_SPACING_MM)
    image = resample(volume.voxels - background, volume.geometry, grid)
    inside = largest_component(_filled(_bright(image)))
    if inside.sum() * grid.voxel_ml > EXTRACTED_MAX_ML:
        return False
    return not _has_bone(volume) if volume.modality.is_ct else _shell_ratio(image, inside) > SHELL_MIN_RATIO


def foreground(volume: Volume) -> MaskArray:
    """Return the filled foreground ``(I, J, K)`` of an already extracted scan: dark ventricles included."""
    background = background_value(volume.voxels)
    mask = (
        largest_component(volume.voxels != background)
        if volume.modality.is_ct
        else largest_component(_bright(volume.voxels - background))
    )
    return _filled(mask)


def background_value(voxels: FloatArray) -> float:
    """Return the most frequent value on the six faces of a scan, which is that of the background."""
    faces = np.concatenate([np.ravel(np.take(voxels, edge, axis)) for axis in range(3) for edge in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    return float(values[counts.argmax()])


def _extract(volume: Volume, settings: BrainMaskSettings) -> MaskArray:
    method = settings.method
    if method == "auto":
        method = "ct" if volume.modality.is_ct else "command" if settings.command else "registration"
    if method == "command" and not settings.command:
        raise ConfigError('brain_mask.method is "command" but brain_mask.command is empty; give the command, e.g. '
                          '"mri_synthstrip -i {input} -m {mask}"')  # fmt: skip
    if method == "command":
        return extract_with_command(volume, settings.command, settings.command_timeout_s)
    return extract_ct(volume, settings.ct, settings.mr) if method == "ct" else extract_mr(volume, settings.mr)


def _check_size(brain_ml: float, settings: BrainMaskSettings) -> None:
    if not settings.min_brain_ml <= brain_ml <= settings.max_brain_ml:
        raise ScanRefusedError(
            "brain_volume",
            f"{brain_ml:.0f} ml of brain",
            f"{settings.min_brain_ml:.0f} to {settings.max_brain_ml:.0f} ml",
            "check that the whole head is in the scan, or extract the brain with another program and send that",
        )


def _bright(image: FloatArray) -> MaskArray:
    positive = image[image > 0]
    return np.asarray(image > (FOREGROUND_THRESHOLD * np.percentile(positive, 95) if positive.size else 0))


def _filled(mask: MaskArray) -> MaskArray:
    closed = ndimage.binary_closing(np.pad(mask, 3), iterations=2)[3:-3, 3:-3, 3:-3]
    return np.asarray(ndimage.binary_fill_holes(closed | mask))


def _shell_ratio(image: FloatArray, inside: MaskArray) -> float:
    """Return the median intensity of the shell below the surface, relative to the centre."""
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=WORKING_SPACING_MM)[1:-1, 1:-1, 1:-1]
    low, high = SHELL_DEPTH_MM
    shell, centre = image[(depth > low) & (depth <= high)], image[depth > 20]
    return float(np.median(shell) / np.median(centre)) if shell.size and centre.size else 0.0


def _has_bone(volume: Volume) -> bool:
    return float((volume.voxels > BONE_HU).sum()) * volume.geometry.voxel_ml > BONE_MIN_ML
