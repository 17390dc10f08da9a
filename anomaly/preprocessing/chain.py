"""The whole way of one scan from "as received" to "normalised, on the template grid", as one configured chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.bias_field import BiasFieldSettings, correct_bias
from anomaly.preprocessing.brain_mask import BrainMaskSettings, find_brain
from anomaly.preprocessing.grid import ORDERS, GridSettings, box_around, crop, resample_mask, to_target_grid
from anomaly.preprocessing.intensity import IntensitySettings, normalise
from anomaly.preprocessing.orient import to_ras
from anomaly.preprocessing.registration import Registration, RegistrationSettings, refuse_if_misplaced, register
from anomaly.preprocessing.template import Template, template_on

CROP_MARGIN_VOXELS = 4


class ChainSettings(Settings):
    """The chain every scan of a model goes through; each key is named like the file that does the step.

    Orientation to RAS comes first and has no settings.
    """

    modality: Modality = Field(default=Modality.T1W, description="what the chain is for; other scans are refused")
    brain_mask: BrainMaskSettings = Field(default_factory=BrainMaskSettings, description="which voxels are brain")
    bias_field: BiasFieldSettings = Field(
        default_factory=BiasFieldSettings, description="even out coil brightness (MR)"
    )
    registration: RegistrationSettings = Field(
        default_factory=RegistrationSettings, description="where the brain lies in MNI152 space"
    )
    grid: GridSettings = Field(default_factory=GridSettings, description="the grid every scan ends up on")
    intensity: IntensitySettings = Field(default_factory=IntensitySettings, description="one brightness scale")


@dataclass(frozen=True, eq=False)
class Prepared:
    """One scan, ready for a model.

    Parameters
    ----------
    voxels
        float32 ``(I, J, K)`` on ``grid``, exactly 0 outside the mask.
    mask
        Brain on the same grid.
    grid
        The template grid, axes along RAS+ millimetres.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm.
    numbers
        Quality numbers: ``registration_overlap`` (Dice), ``registration_correlation``,
        ``registration_rotation_deg``, ``registration_volume_ratio``, ``brain_volume_ml``, ``was_extracted`` (0, 1),
        ``outside_grid`` (share of the brain beyond the template grid), and ``seconds_<step>``.
    """

    voxels: FloatArray
    mask: MaskArray
    grid: Geometry
    template_from_scan: AffineArray
    numbers: dict[str, float]


@dataclass(frozen=True)
class Chain:
    """A configured chain; :meth:`apply` it to any number of scans."""

    settings: ChainSettings

    @property
    def template(self) -> Template:
        """The template on the chain's grid."""
        return template_on(self.settings.grid.spacing_mm)

    def apply(self, volume: Volume) -> Prepared:
        """Prepare one scan. The same scan gives the same bits.

        Parameters
        ----------
        volume
            The scan as received, in any orientation.

        Raises
        ------
        ScanRefusedError
            When no brain is found or its registration is not to be believed.
        """
        clock = _Clock()
        volume = self._of_its_modality(volume)
        brain, mask, numbers = self._find_brain(volume, clock)
        with clock.step("bias_field"):
            brain = correct_bias(brain, mask, self.settings.bias_field)
        with clock.step("registration"):
            found = register(brain, mask, self.settings.registration)
            refuse_if_misplaced(found, self.settings.registration)
        with clock.step("grid"):
            voxels, moved = self._to_grid(brain, mask, found)
        with clock.step("intensity"):
            voxels = normalise(voxels, moved, self.template, self.settings.intensity)
        numbers |= _registration_numbers(found) | {
            "outside_grid": _outside(brain, mask, moved, self.template, found)
        }
        return Prepared(voxels, moved, self.template.geometry, found.template_from_scan, numbers | clock.seconds)

    def _of_its_modality(self, volume: Volume) -> Volume:
        """Return the scan; one that does not say what it is, is taken for what the chain is for."""
        expected = self.settings.modality
        if volume.modality not in (expected, Modality.UNKNOWN):
            raise ScanRefusedError(
                "modality", f"a {volume.modality} scan", f"{expected}, what this chain is for", "use a chain for it"
            )
        return replace(volume, modality=expected)

    def _find_brain(self, volume: Volume, clock: _Clock) -> tuple[Volume, MaskArray, dict[str, float]]:
        """Return the scan in RAS order cropped around its brain, the mask there, and numbers."""
        with clock.step("orient"):
            volume = to_ras(volume)
        with clock.step("brain_mask"):
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


class _Clock:
    """Seconds spent in each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[f"seconds_{name}"] = time.perf_counter() - began


def _registration_numbers(found: Registration) -> dict[str, float]:
    return {
        "registration_overlap": found.overlap,
        "registration_correlation": found.correlation,
        "registration_rotation_deg": found.rotation_deg,
        "registration_volume_ratio": found.volume_ratio,
    }


def _outside(brain: Volume, mask: MaskArray, moved: MaskArray, template: Template, found: Registration) -> float:
    """Return the share of the brain that fell off the template grid, 0 to 1."""
    expected = mask.sum() * brain.geometry.voxel_ml * found.volume_ratio
    return float(max(0.0, 1 - moved.sum() * template.geometry.voxel_ml / expected))
