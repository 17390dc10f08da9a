"""Plant synthetic lesions in healthy scans. They do not replace real disease and are always labelled synthetic.

They are used to choose checkpoints without the pathology test set, and to measure detection and localisation on the
same scans with and without a lesion, so that differences between scanners cannot be detected instead. A lesion
changes the smooth part of a scan only; the scan's fine grain stays in place (:mod:`anomaly.cohort.fine_grain`), so
that neither missing noise nor interpolation distinguishes the lesion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from anomaly.cohort.fine_grain import keep_grain_energy, middle_band, smooth_part
from anomaly.cohort.lesion_changes import (
    Change,
    Site,
    expanded,
    focal,
    haemorrhage,
    scaled,
    subdural,
    textured,
    tumour,
)
from anomaly.cohort.lesion_shapes import (
    ball_radius,
    periventricular_white_matter,
    random_blob,
    random_crescent,
    random_foci,
)
from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.errors import InputError, unknown_name
from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import FloatArray, Geometry, MaskArray, Modality, Volume
from anomaly.preprocessing.components import largest_component
from anomaly.preprocessing.grid import box_around, resample_mask

LesionKind = Literal["dark", "bright", "texture", "mass_effect", "multifocal", "tumour", "haemorrhage", "subdural"]
LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)
CT_LESION_KINDS: tuple[LesionKind, ...] = ("haemorrhage", "subdural")  # on no other modality
MR_LESION_KINDS = tuple(kind for kind in LESION_KINDS if kind not in CT_LESION_KINDS)

LESION_STRENGTHS: dict[LesionKind, tuple[float, float]] = {
    "dark": (0.15, 0.50),  # decrease of the signal, as a share
    "bright": (0.15, 0.50),  # increase of the signal, as a share
    "texture": (0.5, 1.5),  # SD of the texture, relative to the SD of the intensities around the lesion
    "mass_effect": (0.3, 0.6),  # displacement at the rim of the lesion, in lesion radii
    "multifocal": (0.25, 0.60),  # change of the signal, as a share
    "tumour": (0.2, 0.5),  # change of the signal, as a share, and displacement, in radii
    "haemorrhage": (50.0, 90.0),  # density of the blood, HU
    "subdural": (50.0, 90.0),  # density of the blood, HU
}
"""Kind of lesion → range of its strength."""

LESION_ML: dict[LesionKind, tuple[float, float]] = {
    "multifocal": (0.05, 1.0),  # of each focus
    "tumour": (5.0, 60.0),
    "haemorrhage": (2.0, 60.0),
    "subdural": (10.0, 80.0),
}
"""Kind of lesion that is always drawn → range of its volume, millilitres; others take the shape that is given."""

EDGE_SD_VOXELS = 1.0  # SD of the soft edge of a lesion, and the least along any axis
MARGIN_VOXELS = 16  # around a lesion, beyond its radius: more than the Gaussians reach
MAX_SHARE = 0.1  # of the foreground, of the volume of a lesion that is drawn
STRUCTURE_GAINS = (-0.6, 1.0)  # limits of the factor for the structure of a lesion
REPLACED_GAINS = (-1.25, 1.0)  # the same for the structure that a texture replaces
NOISE_GAINS = (-1.5, 1.5)  # limits of the SD of added noise, relative to the fine grain


@dataclass(frozen=True, eq=False)
class PlantedScan:
    """A healthy scan with a synthetic lesion. Voxels and masks are ``(I, J, K)`` on one grid.

    Parameters
    ----------
    voxels
        float32 scan with the lesion.
    mask
        Foreground.
    lesion
        Where the lesion was planted, inside the foreground. For ``"mass_effect"``, the region of expanded tissue;
        the tissue around it that is displaced and compressed is not part of it. For the others, all tissue that was
        changed, except for the outer half of the soft edge: of a tumour core, rim and oedema.
    kind, strength
        Kind and strength of the lesion; see :data:`LESION_STRENGTHS`.
    covariates
        ``(D,)`` covariates of the subject, as those of the training volumes: age and sex; unknown by default.
    """

    voxels: FloatArray
    mask: MaskArray
    lesion: MaskArray
    kind: LesionKind
    strength: float
    covariates: FloatArray = field(default_factory=UNKNOWN_COVARIATES.copy)


def plant(
    voxels: FloatArray,
    mask: MaskArray,
    lesion: MaskArray,
    kind: LesionKind,
    strength: float,
    rng: np.random.Generator,
    *,
    modality: Modality = Modality.T1W,
    no_signal: float = 0.0,
    hounsfield: float = 1.0,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    edge_voxels: float | Sequence[float] = EDGE_SD_VOXELS,
) -> PlantedScan:
    """Plant a lesion with a soft edge in a scan; voxels outside the mask do not change.

    Parameters
    ----------
    voxels
        float32 ``(I, J, K)`` healthy scan, in any units.
    mask, lesion
        Foreground and lesion; the part of the lesion outside the foreground is dropped.
    kind
        ``"dark"`` and ``"bright"`` scale the signal by 1 ∓ strength; ``"texture"`` adds a texture and keeps the
        mean; ``"mass_effect"`` displaces the tissue outwards from the centre of the largest part of the lesion;
        ``"multifocal"`` makes foci as of multiple sclerosis, ``"tumour"`` a core, a rim and compressed oedema, both
        as the modality shows them; ``"haemorrhage"`` in the brain and ``"subdural"`` beside it are blood in CT.
        The shape of an infarct with the kind ``"dark"`` (in T2w and FLAIR ``"bright"``) is an infarct.
    strength
        See :data:`LESION_STRENGTHS`.
    rng
        Random generator of textures and of the noise that stretched tissue has lost.
    modality
        What decides whether foci, oedema and the parts of a tumour are dark or bright.
    no_signal
        The intensity of zero signal: 0 for raw MR and percentile-normalised volumes; 0 HU (water) for CT; for
        z-scored volumes, the z-score of zero signal.
    hounsfield
        In CT, the difference of intensity of one HU: 1 in raw scans.
    spacing
        Size of a voxel along each axis, in any unit.
    edge_voxels
        Standard deviation of the soft edge, voxels.

    Raises
    ------
    InputError
        If the kind is unknown or not of the modality, or the lesion does not overlap the foreground.
    """
    if kind not in LESION_KINDS:
        raise InputError(unknown_name("kind of lesion", kind, list(LESION_KINDS)))
    inside = lesion & mask
    if not inside.any():
        raise InputError("the lesion does not overlap the foreground; move it or choose another shape")
    if kind == "mass_effect":
        inside = largest_component(inside)
    radius = ball_radius(float(inside.sum() * np.prod(spacing)))
    box = box_around(inside, margin=MARGIN_VOXELS + round(radius / min(spacing)))
    around, foreground = voxels[box].astype(np.float32), mask[box]
    smooth = smooth_part(around, foreground)
    site = Site(around, foreground, inside[box], smooth, modality, no_signal, hounsfield, spacing, edge_voxels, rng)
    planted = voxels.astype(np.float32)
    planted[box] = _changed(site, kind, strength, _as_stored(voxels[mask], no_signal))
    return PlantedScan(planted, mask, inside, kind, strength)


def draw_strength(kind: LesionKind, rng: np.random.Generator) -> float:
    """Draw a strength uniformly from the range of a kind of lesion."""
    return float(rng.uniform(*LESION_STRENGTHS[kind]))


def draw_lesion(
    kind: LesionKind, mask: MaskArray, grid: Geometry, volume_ml: tuple[float, float], rng: np.random.Generator
) -> MaskArray:
    """Draw a lesion of the shape that a kind has, inside a mask ``(I, J, K)`` whose axes are along RAS+.

    Parameters
    ----------
    volume_ml
        Range of the volume, uniform on a logarithmic scale; kinds of :data:`LESION_ML` have their own.
    """
    limits = LESION_ML.get(kind, volume_ml)
    if kind == "multifocal":
        return random_foci(mask, limits, grid, rng, likely=periventricular_white_matter(grid))
    volume = min(float(np.exp(rng.uniform(*np.log(limits)))), MAX_SHARE * float(mask.sum()) * grid.voxel_ml)
    if kind == "subdural":
        return random_crescent(mask, volume, grid, rng)
    return random_blob(mask, volume, grid.voxel_ml, rng)


def plant_in_scan(
    volume: Volume,
    template_from_scan: npt.ArrayLike,
    lesion: MaskArray,
    lesion_grid: Geometry,
    kind: LesionKind,
    strength: float,
    rng: np.random.Generator,
    *,
    brain: MaskArray | None = None,
    edge_mm: float = 1.5,
) -> tuple[Volume, MaskArray]:
    """Plant a lesion given in template space in a scan as received, on the scan's own grid.

    Parameters
    ----------
    volume
        The scan as received.
    template_from_scan
        ``(4, 4)`` scan RAS+ mm → template RAS+ mm, as in the cohort's manifest.
    lesion, lesion_grid
        Lesion mask, and its grid in template space.
    kind, strength, rng
        As for :func:`plant`; the modality is that of the scan.
    brain
        Brain ``(I, J, K)`` on the grid of the scan; by default the voxels above 0, for brain-extracted MR.
    edge_mm
        Standard deviation of the soft edge, millimetres, but at least :data:`EDGE_SD_VOXELS`.

    Returns
    -------
    Volume, ndarray
        The scan with the lesion, which ``meta["synthetic_lesion"]`` describes; and the lesion mask ``(I, J, K)`` on
        the grid of the scan.
    """
    moved = resample_mask(lesion, lesion_grid, volume.geometry, template_from_scan, antialias=False)
    inside = volume.voxels > 0 if brain is None else brain
    spacing = volume.geometry.spacing
    edge = [max(edge_mm / size, EDGE_SD_VOXELS) for size in spacing]
    planted = plant(
        volume.voxels, inside, moved, kind, strength, rng,
        modality=volume.modality, spacing=spacing, edge_voxels=edge,
    )  # fmt: skip
    label = {"kind": kind, "strength": strength, "ml": float(planted.lesion.sum() * volume.geometry.voxel_ml)}
    meta = {**volume.meta, "synthetic_lesion": label}
    return replace(volume, voxels=planted.voxels, meta=meta), planted.lesion


def planted_scans(
    source: VolumeSource,
    seed: int,
    *,
    kinds: Sequence[LesionKind] = ("dark",),
    shapes: Sequence[MaskArray] | None = None,
    volume_ml: tuple[float, float] = (1.0, 30.0),
    modality: Modality = Modality.T1W,
    no_signal: float = 0.0,
    hounsfield: float = 1.0,
) -> Iterator[PlantedScan]:
    """Yield each scan of a source once, with one lesion; the same seed plants the same lesions.

    Parameters
    ----------
    kinds
        Kinds of lesion, taken in turn.
    shapes
        Lesion masks on the grid of the source, for the kinds that have no shape of their own; without them, lesions
        are drawn by :func:`draw_lesion`.
    volume_ml
        Range of the volumes of drawn lesions, uniform on a logarithmic scale.
    modality, no_signal, hounsfield
        As for :func:`plant`.
    """
    for index in range(len(source)):
        rng = np.random.default_rng([seed, index])
        voxels, mask = source[index]
        kind = kinds[index % len(kinds)]
        given = shapes is not None and kind not in LESION_ML
        lesion = _shape_inside(mask, shapes, rng) if shapes is not None and given else None
        if lesion is None:
            lesion = draw_lesion(kind, mask, source.grid, volume_ml, rng)
        planted = plant(
            voxels, mask, lesion, kind, draw_strength(kind, rng), rng,
            modality=modality, no_signal=no_signal, hounsfield=hounsfield,
        )  # fmt: skip
        yield replace(planted, covariates=source.covariates(index))


def _shape_inside(mask: MaskArray, shapes: Sequence[MaskArray], rng: np.random.Generator) -> MaskArray | None:
    """Return a random shape that is at least half inside the mask, or None if ten attempts find none."""
    for _ in range(10):
        shape = shapes[int(rng.integers(len(shapes)))]
        if shape.any() and (shape & mask).sum() >= 0.5 * shape.sum():
            return shape
    return None


_CHANGES: dict[LesionKind, Change] = {
    "dark": lambda site, strength: scaled(site, -strength),
    "bright": scaled,
    "texture": textured,
    "mass_effect": expanded,
    "multifocal": focal,
    "tumour": tumour,
    "haemorrhage": haemorrhage,
    "subdural": subdural,
}


def _changed(
    site: Site, kind: LesionKind, strength: float, as_stored: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """Change the smooth part, put the fine grain back, and keep the energy of the grain.

    The energy is kept by blurring or sharpening the structure of the lesion, for a texture that of the tissue which
    it replaces, and then by noise: stretched tissue has lost the noise of its smooth part.
    """
    smooth, where = _CHANGES[kind](site, strength)
    grain = site.voxels - site.smooth
    changed = np.where(site.mask, smooth + grain, site.voxels).astype(np.float32)
    replaced = kind == "texture"
    structure = middle_band(site.smooth if replaced else smooth, site.mask, where)
    noise = (where * grain[site.lesion].std() * site.rng.standard_normal(grain.shape)).astype(np.float32)
    bands = ((structure, REPLACED_GAINS if replaced else STRUCTURE_GAINS), (noise, NOISE_GAINS))
    kept = keep_grain_energy(site.voxels, changed, bands, site.mask, site.lesion, as_stored)
    return np.where(site.mask & (where > 0), kept, site.voxels)


def _as_stored(values: FloatArray, no_signal: float) -> Callable[[FloatArray], FloatArray]:
    """Return a function that stores voxels as the foreground of a scan stores its values.

    They are rounded if the scan has whole numbers only. If the foreground is above the intensity of zero signal,
    the lesion is, too: it remains foreground.
    """
    lowest, whole = float(values.min()), bool(np.all(values == np.round(values)))
    lowest -= max(0.9 * (lowest - no_signal), 0.0)
    return lambda voxels: np.maximum(np.round(voxels), np.ceil(lowest)) if whole else np.maximum(voxels, lowest)
