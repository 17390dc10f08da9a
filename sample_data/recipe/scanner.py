"""Simulate MR and CT scans from the tissue maps of a subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sample_data.recipe.anatomy import Anatomy, Array, BoolArray
from sample_data.recipe.density import SINUS_HU, beam_hardening, draw_calcifications, sinus_weight
from sample_data.recipe.grid import Grid
from sample_data.recipe.lesions import SUBDURAL_MM, Lesion, lesion_mask, soft_edge
from sample_data.recipe.subjects import Stream, Warp, draw_person, random_stream

Contrast = Literal["T1w", "T2w", "FLAIR"]

BRAIN_SIGNAL: dict[Contrast, dict[str, tuple[float, float]]] = {
    "T1w": {"grey": (0.74, 0.015), "csf": (0.26, 0.02)},
    "T2w": {"grey": (1.2, 0.03), "csf": (3.0, 0.15)},
    "FLAIR": {"grey": (1.14, 0.02), "csf": (0.3, 0.05)},
}
"""Mean and SD over subjects of the signal of a tissue, relative to white matter."""

HEAD_SIGNAL = {"table": 0.06, "diploe": 0.42, "fat": 1.25, "soft": 0.5, "eye": 0.2, "brain_fluid": 0.2}
"""T1-weighted signal of the tissues around the brain, relative to white matter."""

DETAIL_SIGNAL: dict[Contrast, float] = {"T1w": 0.7, "T2w": -0.7, "FLAIR": 0.0}
"""Weight of the map ``detail``, which is that of the T1 template: iron and myelin are dark on T2w."""

HOUNSFIELD = {
    "white": 30.0,
    "grey": 38.0,
    "csf": 5.0,
    "table": 1300.0,
    "diploe": 650.0,
    "fat": -80.0,
    "soft": 48.0,
    "eye": 10.0,
    "brain_fluid": 6.0,
}
AIR_HU = -1000.0
THIN_SLICE_MM = 4.5
"""A slice up to this thickness is sampled once, a thicker one several times, so that tissues share its voxels."""
STORED_STEP_HU = 2
"""Densities are stored in steps of this size, half of the noise, because that halves the files."""


@dataclass(frozen=True)
class Scan:
    """A scan and, if a lesion was planted, its mask on the same grid.

    Parameters
    ----------
    voxels
        Shape (I, J, K): MR signal in arbitrary units (uint8 brain, int16 head), CT in Hounsfield units (int16).
    grid
        The voxel grid.
    brain
        Brain mask, shape (I, J, K).
    lesion
        Lesion mask, shape (I, J, K), or None.
    """

    voxels: NDArray[np.uint8] | NDArray[np.int16]
    grid: Grid
    brain: BoolArray
    lesion: BoolArray | None = None


@dataclass(frozen=True)
class Patient:
    """One subject in the scanner: its tissue fractions at the voxels of a scan.

    Parameters
    ----------
    number
        Number of the subject, which seeds scanner, noise and lesion.
    grid
        The grid of the scan.
    template
        Template coordinates of the voxels, shape (I, J, K, 3), RAS+ millimetres.
    maps
        Tissue name to fraction, shape (I, J, K).
    """

    number: int
    grid: Grid
    template: Array
    maps: Mapping[str, Array]

    @property
    def brain(self) -> BoolArray:
        """Largest component of the brain mask, shape (I, J, K)."""
        components, _ = ndimage.label(self.maps["brain"] > 0.5)
        return np.asarray(components == 1 + np.argmax(np.bincount(components.ravel())[1:]))

    def mix(self, values: Mapping[str, float]) -> Array:
        """Sum the tissues, each weighted by its value, shape (I, J, K)."""
        return np.asarray(sum(value * self.maps[name] for name, value in values.items()))

    def lesion_mask(self, lesion: Lesion | None) -> BoolArray | None:
        """Shape of a lesion in brain tissue, or None."""
        if lesion is None:
            return None
        return lesion_mask(lesion, self.number, self.template, self._eligible(lesion), self.grid)

    def _eligible(self, lesion: Lesion) -> BoolArray:
        """Return the voxels that may belong to a lesion, shape (I, J, K)."""
        if lesion.site == "tissue":
            return np.asarray(self.brain & (self.maps["white"] + self.maps["grey"] > 0.7))
        cavity = ndimage.binary_opening(self.maps["brain"] + self.maps["brain_fluid"] > 0.5)
        if lesion.site == "extra_axial":
            return np.asarray(cavity)
        depth = ndimage.distance_transform_edt(cavity, sampling=self.grid.spacing)
        return np.asarray(cavity & (depth <= SUBDURAL_MM))


def sample_patient(number: int, anatomy: Anatomy, warp: Warp, grid: Grid) -> Patient:
    """Sample all maps of an anatomy at the voxels of a scan of this subject."""
    template = warp.to_template(grid.points())
    return Patient(number, grid, template, {name: anatomy.at(template, name) for name in anatomy.maps})


def sample_slices(number: int, anatomy: Anatomy, warp: Warp, grid: Grid) -> Patient:
    """Sample all maps as :func:`sample_patient` does; in a thick slice, their mean over its thickness."""
    thinner = [sample_patient(number, anatomy, warp, part) for part in grid.within_slices(THIN_SLICE_MM)]
    maps = {name: np.mean([part.maps[name] for part in thinner], axis=0) for name in anatomy.maps}
    return Patient(number, grid, warp.to_template(grid.points()), maps)


def scan_mr(
    patient: Patient, lesion: Lesion | None = None, *, head: bool = False, contrast: Contrast = "T1w"
) -> Scan:
    """Take an MR scan.

    Parameters
    ----------
    patient
        The subject; with ``head``, its maps must include the tissues of the head.
    lesion
        The lesion to plant in the brain, if any.
    head
        Whether to scan the whole head (int16), which has T1w contrast; otherwise the brain alone, zero outside it
        (uint8).
    contrast
        Contrast of the brain.
    """
    rng = random_stream(patient.number, Stream.SCANNER)
    means = {"white": 1.0, **{name: rng.normal(*moments) for name, moments in BRAIN_SIGNAL[contrast].items()}}
    mixed = patient.mix({**means, "detail": DETAIL_SIGNAL[contrast]}) / max(means.values())
    signal = np.clip(mixed, 0.0, None) ** rng.uniform(0.92, 1.08)
    mask = patient.lesion_mask(lesion)
    if lesion is not None and mask is not None:
        signal *= 1.0 + (lesion.amount - 1.0) * soft_edge(mask)
    if head:
        signal += patient.mix(HEAD_SIGNAL)
    signal = ndimage.gaussian_filter(signal, rng.uniform(0.3, 0.45)) * _bias_field(patient, rng)
    level = rng.uniform(110.0, 140.0)
    received = _rician(level * signal, rng.uniform(0.018, 0.028) * level, patient.number)
    if head:
        return Scan(np.round(4.0 * received).astype(np.int16), patient.grid, patient.brain, mask)
    voxels = np.clip(np.round(np.where(patient.brain, received, 0.0)), 0, 255).astype(np.uint8)
    return Scan(voxels, patient.grid, patient.brain, mask)


def scan_ct(patient: Patient, lesion: Lesion | None = None) -> Scan:
    """Take a CT scan of the head, in Hounsfield units (int16)."""
    rng = random_stream(patient.number, Stream.SCANNER)
    density = {name: value + rng.normal(0.0, 0.03 * abs(value)) for name, value in HOUNSFIELD.items()}
    hounsfield = AIR_HU + patient.mix({name: value - AIR_HU for name, value in density.items()})
    hounsfield += sinus_weight(patient.template, patient.maps) * (SINUS_HU - density["brain_fluid"])
    mask = patient.lesion_mask(lesion)
    if lesion is not None and mask is not None:
        hounsfield += soft_edge(mask) * _hounsfield_change(lesion, hounsfield)
    for weight, calcium_hu in draw_calcifications(patient.number, draw_person(patient.number), patient.template):
        hounsfield += weight * np.maximum(calcium_hu - hounsfield, 0.0)
    hounsfield += np.where(hounsfield > HOUNSFIELD["fat"], beam_hardening(patient.number, patient.template), 0.0)
    noise = random_stream(patient.number, Stream.NOISE).normal(0.0, rng.uniform(2.5, 3.5), patient.grid.shape)
    noise[hounsfield < AIR_HU + 50.0] = 0.0  # a scanner cuts the noise of air off at the end of its scale
    steps = np.round((hounsfield + noise) / STORED_STEP_HU)
    voxels = np.clip(STORED_STEP_HU * steps, AIR_HU, 3071).astype(np.int16)
    return Scan(voxels, patient.grid, patient.brain, mask)


def _hounsfield_change(lesion: Lesion, hounsfield: Array) -> Array:
    """Compute the change of each voxel by a lesion, shape (I, J, K), Hounsfield units."""
    if lesion.effect == "hounsfield_value":
        return lesion.amount - hounsfield
    return np.full(hounsfield.shape, lesion.amount)


def _bias_field(patient: Patient, rng: np.random.Generator) -> Array:
    """Draw a smooth receive field around 1, shape (I, J, K): exp of a random cubic polynomial of the position."""
    x, y, z = np.moveaxis((patient.grid.points() - (0.0, -17.0, 6.0)) / 100.0, -1, 0)
    terms = np.stack([x, y, z, x * y, y * z, x * z, x * x, y * y, z * z, x * y * z, x**3, y**3, z**3])
    weights = rng.normal(0.0, 0.045, len(terms))
    return np.asarray(np.exp(np.einsum("t,t...->...", weights, terms)))


def _rician(signal: Array, sigma: float, number: int) -> Array:
    """Return the magnitude of a complex signal with Gaussian noise of SD ``sigma`` in each channel."""
    rng = random_stream(number, Stream.NOISE)
    real, imaginary = rng.normal(0.0, sigma, (2, *signal.shape))
    return np.asarray(np.hypot(signal + real, imaginary))
