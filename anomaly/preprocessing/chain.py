"""The preprocessing chain: all steps from a scan as received to a normalised brain on the template grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from anomaly.core.config import Settings, load_extended_yaml
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.bias_field import BiasFieldSettings, correct_bias
from anomaly.preprocessing.bone import BoneSettings, replace_bone
from anomaly.preprocessing.brain_mask import BrainMaskSettings, find_brain
from anomaly.preprocessing.grid import ORDERS, GridSettings, box_around, crop, resample_mask, to_target_grid
from anomaly.preprocessing.intensity import IntensitySettings, normalise
from anomaly.preprocessing.orient import to_ras
from anomaly.preprocessing.registration import Registration, RegistrationSettings, check_registration, register
from anomaly.preprocessing.template import Template, template_on

CROP_MARGIN_VOXELS = 4


class ChainSettings(Settings):
    """Settings of the chain; each key is the name of the module of its step.

    The first step, orientation to RAS, has no settings.
    """

    modality: Modality = Field(
        default=Modality.T1W, description="modality that the chain is for; scans of another one are refused"
    )
    brain_mask: BrainMaskSettings = Field(default_factory=BrainMaskSettings, description="which voxels are brain")
    bone: BoneSettings = Field(
        default_factory=BoneSettings, description="bone and calcification are replaced by the brain nearby (CT)"
    )
    bias_field: BiasFieldSettings = Field(
        default_factory=BiasFieldSettings, description="correction of the bias field (MR)"
    )
    registration: RegistrationSettings = Field(
        default_factory=RegistrationSettings, description="affine registration to MNI152 space"
    )
    grid: GridSettings = Field(
        default_factory=GridSettings, description="template grid that scans are resampled to"
    )
    intensity: IntensitySettings = Field(
        default_factory=IntensitySettings, description="normalisation of intensities to one scale"
    )


def load_chain_settings(path: Path, shipped: Mapping[str, Path]) -> ChainSettings:
    """Read the settings of a chain and of what it extends.

    Parameters
    ----------
    shipped
        Name → path of the chains that can be extended by name.

    Raises
    ------
    ConfigError
        A file cannot be read, or a key or a value is not valid.
    """
    return ChainSettings.parse(load_extended_yaml(path, shipped), where=str(path))


@dataclass(frozen=True, eq=False)
class Prepared:
    """One preprocessed scan.

    Parameters
    ----------
    voxels
        float32 ``(I, J, K)`` on ``grid``, exactly 0 outside the mask.
    mask
        Brain ``(I, J, K)`` on the same grid.
    grid
        The template grid, axes along RAS+ millimetres.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    numbers
        Quality metrics: ``registration_overlap`` (Dice), ``registration_correlation``,
        ``registration_rotation_deg``, ``registration_volume_ratio``, ``brain_volume_ml``, ``was_extracted`` (0 or
        1), ``outside_grid`` (share of the brain outside the template grid); and ``seconds_<step>``.
    """

    voxels: FloatArray
    mask: MaskArray
    grid: Geometry
    template_from_scan: AffineArray
    numbers: dict[str, float]


@dataclass(frozen=True)
class Chain:
    """A preprocessing chain with its settings; :meth:`apply` preprocesses a scan."""

    settings: ChainSettings

    @property
    def template(self) -> Template:
        """The template on the chain's grid."""
        return template_on(self.settings.grid.spacing_mm)

    def apply(self, volume: Volume) -> Prepared:
        """Preprocess one scan. The same scan gives the same bits.

        Parameters
        ----------
        volume
            The scan as received, in any orientation.

        Raises
        ------
        ScanRefusedError
            If the scan is of another modality, no brain is found, or the registration is poor.
        """
        timer = _StepTimer()
        volume = self._with_expected_modality(volume)
        brain, mask, numbers = self._find_brain(volume, timer)
        with timer.step("bone"):
            brain = replace_bone(brain, mask, self.settings.bone)
        with timer.step("bias_field"):
            brain = correct_bias(brain, mask, self.settings.bias_field)
        with timer.step("registration"):
            found = register(brain, mask, self.settings.registration)
            check_registration(found, self.settings.registration)
        with timer.step("grid"):
            voxels, moved = self._to_grid(brain, mask, found)
        with timer.step("intensity"):
            voxels = normalise(voxels, moved, self.template, self.settings.intensity)
        numbers |= _registration_numbers(found) | {
            "outside_grid": _share_outside_grid(brain, mask, moved, self.template, found)
        }
        return Prepared(voxels, moved, self.template.geometry, found.template_from_scan, numbers | timer.seconds)

    def _with_expected_modality(self, volume: Volume) -> Volume:
        """Refuse a scan of another modality; take one of unknown modality, or with contrast agent, as expected."""
        expected = self.settings.modality
        accepted = (expected, Modality.UNKNOWN)
        if volume.modality not in accepted and volume.modality.without_agent not in accepted:
            raise ScanRefusedError(
                "modality",
                f"a {volume.modality} scan",
                f"a {expected} scan",
                f"use a preprocessing chain for {volume.modality}",
            )
        return replace(volume, modality=expected)

    def _find_brain(self, volume: Volume, timer: _StepTimer) -> tuple[Volume, MaskArray, dict[str, float]]:
        """Return the scan in RAS order, cropped to its brain; the mask of the brain; and quality metrics."""
        with timer.step("orient"):
            volume = to_ras(volume)
        with timer.step("brain_mask"):
            mask, extracted = find_brain(volume, self.settings.brain_mask)
        numbers = {
            "brain_volume_ml": float(mask.sum()) * volume.geometry.voxel_ml,
            "was_extracted": float(extracted),
        }
        box = box_around(mask, CROP_MARGIN_VOXELS)
        return crop(volume, box), mask[box], numbers

    def _to_grid(self, brain: Volume, mask: MaskArray, found: Registration) -> tuple[FloatArray, MaskArray]:
        grid, order = self.template.geometry, ORDERS[self.settings.grid.interpolation]
        scan_from_template = np.linalg.inv(found.template_from_scan)
        voxels = to_target_grid(brain, grid, found.template_from_scan, order)
        return voxels, resample_mask(mask, brain.geometry, grid, scan_from_template)


class _StepTimer:
    """Measure the seconds spent in each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[f"seconds_{name}"] = time.perf_counter() - started


def _registration_numbers(found: Registration) -> dict[str, float]:
    return {
        "registration_overlap": found.overlap,
        "registration_correlation": found.correlation,
        "registration_rotation_deg": found.rotation_deg,
        "registration_volume_ratio": found.volume_ratio,
    }


def _share_outside_grid(
    brain: Volume, mask: MaskArray, moved: MaskArray, template: Template, found: Registration
) -> float:
    """Return the share of the brain outside the template grid, 0 to 1."""
    expected = mask.sum() * brain.geometry.voxel_ml * found.volume_ratio
    return float(max(0.0, 1 - moved.sum() * template.geometry.voxel_ml / expected))
