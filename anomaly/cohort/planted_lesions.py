"""Plant synthetic lesions in healthy scans. They do not replace real disease and are always labelled synthetic.

They are used to choose checkpoints without the pathology test set, and to measure detection and localisation on the
same scans with and without a lesion, so that differences between scanners cannot be detected instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomaly.cohort.fine_grain import keep_grain_energy, smooth_part
from anomaly.cohort.lesion_shapes import random_blob, smooth_noise
from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.errors import InputError, unknown_name
from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import FloatArray, Geometry, MaskArray, Volume
from anomaly.preprocessing.grid import box_around, resample_mask

LesionKind = Literal["dark", "bright", "texture", "mass_effect"]
LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)

LESION_STRENGTHS: dict[LesionKind, tuple[float, float]] = {
    "dark": (0.15, 0.50),  # decrease of the signal, as a share
    "bright": (0.15, 0.50),  # increase of the signal, as a share
    "texture": (0.5, 1.5),  # SD of the texture, relative to the SD of the intensities around the lesion
    "mass_effect": (0.3, 0.6),  # displacement at the rim of the lesion, in lesion radii
}
"""Kind of lesion → range of its strength."""

EDGE_SD_VOXELS = 1.0  # SD of the soft edge of a lesion, and the least on every axis
TEXTURE_SD_VOXELS = 2.0  # SD of the Gaussian that smooths the noise of a texture
MARGIN_VOXELS = 16  # around a lesion, beyond its radius: more than the Gaussians reach


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
        Where the lesion was planted, inside the foreground.
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
    no_signal: float = 0.0,
    edge_voxels: float | Sequence[float] = EDGE_SD_VOXELS,
) -> PlantedScan:
    """Plant a lesion with a soft edge in a scan; voxels outside the mask do not change.

    Only the smooth part of the scan is changed: its fine grain stays in place, and the energy of the grain in the
    lesion stays as it was (:mod:`anomaly.cohort.fine_grain`). Neither missing noise nor interpolation distinguishes
    the lesion.

    Parameters
    ----------
    voxels
        float32 ``(I, J, K)`` healthy scan, in any units.
    mask, lesion
        Foreground and lesion; the part of the lesion outside the foreground is dropped.
    kind
        ``"dark"`` and ``"bright"`` scale the signal by 1 ∓ strength; ``"texture"`` adds a texture and keeps the
        mean; ``"mass_effect"`` displaces the tissue outwards from the centre of the lesion.
    strength
        See :data:`LESION_STRENGTHS`.
    rng
        Random generator of the texture; the other kinds do not use it.
    no_signal
        The intensity of zero signal: 0 for raw MR and percentile-normalised volumes; 0 HU (water) for CT; for
        z-scored volumes, the z-score of zero signal.
    edge_voxels
        Standard deviation of the soft edge, voxels.

    Raises
    ------
    InputError
        If the kind is unknown, or the lesion does not overlap the foreground.
    """
    if kind not in LESION_KINDS:
        raise InputError(unknown_name("kind of lesion", kind, list(LESION_KINDS)))
    inside = lesion & mask
    if not inside.any():
        raise InputError("the lesion does not overlap the foreground; move it or choose another shape")
    box = box_around(inside, margin=MARGIN_VOXELS + round(_radius(inside)))
    site = _Site.of(voxels[box], mask[box], inside[box], no_signal, edge_voxels, rng)
    planted = voxels.astype(np.float32)
    planted[box] = _changed(site, kind, strength, _as_stored(voxels[mask], no_signal))
    return PlantedScan(planted, mask, inside, kind, strength)


def draw_strength(kind: LesionKind, rng: np.random.Generator) -> float:
    """Draw a strength uniformly from the range of a kind of lesion."""
    return float(rng.uniform(*LESION_STRENGTHS[kind]))


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
        As for :func:`plant`.
    brain
        Brain ``(I, J, K)`` on the grid of the scan; by default the voxels above 0, for brain-extracted scans.
    edge_mm
        Standard deviation of the soft edge, millimetres.

    Returns
    -------
    Volume, ndarray
        The scan with the lesion, which ``meta["synthetic_lesion"]`` describes; and the lesion mask ``(I, J, K)`` on
        the grid of the scan.
    """
    moved = resample_mask(lesion, lesion_grid, volume.geometry, template_from_scan, antialias=False)
    inside = volume.voxels > 0 if brain is None else brain
    edge = [max(edge_mm / spacing, EDGE_SD_VOXELS) for spacing in volume.geometry.spacing]
    planted = plant(volume.voxels, inside, moved, kind, strength, rng, edge_voxels=edge)
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
    no_signal: float = 0.0,
) -> Iterator[PlantedScan]:
    """Yield each scan of a source once, with one lesion; the same seed plants the same lesions.

    Parameters
    ----------
    kinds
        Kinds of lesion, taken in turn.
    shapes
        Lesion masks on the grid of the source; without them, lesions are drawn by :func:`random_blob`.
    volume_ml
        Range of the volumes of drawn lesions, uniform on a logarithmic scale.
    """
    for index in range(len(source)):
        rng = np.random.default_rng([seed, index])
        voxels, mask = source[index]
        kind = kinds[index % len(kinds)]
        lesion = _shape_inside(mask, shapes, rng) if shapes is not None else None
        if lesion is None:
            volume = min(float(np.exp(rng.uniform(*np.log(volume_ml)))), 0.1 * mask.sum() * source.grid.voxel_ml)
            lesion = random_blob(mask, volume, source.grid.voxel_ml, rng)
        planted = plant(voxels, mask, lesion, kind, draw_strength(kind, rng), rng, no_signal=no_signal)
        yield replace(planted, covariates=source.covariates(index))


def _shape_inside(mask: MaskArray, shapes: Sequence[MaskArray], rng: np.random.Generator) -> MaskArray | None:
    """Return a random shape that is at least half inside the mask, or None if ten attempts find none."""
    for _ in range(10):
        shape = shapes[int(rng.integers(len(shapes)))]
        if shape.any() and (shape & mask).sum() >= 0.5 * shape.sum():
            return shape
    return None


@dataclass(frozen=True, eq=False)
class _Site:
    """The part of a scan around a lesion.

    Parameters
    ----------
    voxels, mask, lesion
        ``(I, J, K)`` scan, foreground and lesion inside it.
    smooth
        The voxels without their fine grain.
    weight
        The lesion with its soft edge, 0 to 1, 0 outside the foreground.
    no_signal
        The intensity of zero signal.
    rng
        Random generator of textures.
    """

    voxels: FloatArray
    mask: MaskArray
    lesion: MaskArray
    smooth: FloatArray
    weight: FloatArray
    no_signal: float
    rng: np.random.Generator

    @classmethod
    def of(
        cls,
        voxels: FloatArray,
        mask: MaskArray,
        lesion: MaskArray,
        no_signal: float,
        edge_voxels: float | Sequence[float],
        rng: np.random.Generator,
    ) -> _Site:
        weight = _soft_edge(lesion, edge_voxels) * mask
        return cls(voxels, mask, lesion, smooth_part(voxels, mask), weight, no_signal, rng)


def _changed(
    site: _Site, kind: LesionKind, strength: float, as_stored: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """Change the smooth part, put the fine grain back, and keep the energy of the grain."""
    smooth, where = _CHANGES[kind](site, strength)
    changed = np.where(site.mask, smooth + (site.voxels - site.smooth), site.voxels).astype(np.float32)
    structure = site.smooth if kind == "texture" else smooth
    kept = keep_grain_energy(site.voxels, changed, structure, site.mask, site.lesion, where, as_stored)
    return np.where(site.mask & (where > 0), kept, site.voxels)


def _scaled(site: _Site, change: float) -> tuple[FloatArray, FloatArray]:
    """Scale the signal by ``1 + change``."""
    signal = site.smooth - site.no_signal
    return np.asarray(site.smooth + change * site.weight * signal, dtype=np.float32), site.weight


def _with_texture(site: _Site, strength: float) -> tuple[FloatArray, FloatArray]:
    """Add noise that is coarser than the grain and has mean 0 over the lesion: the same mean, another texture."""
    neighbourhood = ndimage.binary_dilation(site.lesion, iterations=3) & site.mask
    noise = smooth_noise(site.voxels.shape, TEXTURE_SD_VOXELS, site.rng)
    noise = noise - np.sum(noise * site.weight) / np.sum(site.weight)
    texture = strength * float(site.voxels[neighbourhood].std()) * noise
    return np.asarray(site.smooth + site.weight * texture, dtype=np.float32), site.weight


def _expanded(site: _Site, strength: float) -> tuple[FloatArray, FloatArray]:
    """Displace tissue away from the centre: the lesion is expanded, and the tissue around it is compressed.

    The displacement decreases from the surface of the lesion to 0 at a distance of the lesion's radius. It also
    decreases towards the edge of the foreground, so that the brain keeps its outline.
    """
    radius = _radius(site.lesion)
    beyond = np.clip(1 - ndimage.distance_transform_edt(~site.lesion) / radius, 0, 1)
    outline = np.clip(ndimage.distance_transform_edt(site.mask) / radius, 0, 1)
    where = np.asarray(beyond * outline, dtype=np.float32)
    return _displaced(site.smooth, np.argwhere(site.lesion).mean(axis=0), strength * where), where


def _displaced(smooth: FloatArray, centre: npt.NDArray[np.float64], share: FloatArray) -> FloatArray:
    """Sample every voxel at a position that is closer to the centre by a share of its distance."""
    positions = np.indices(smooth.shape, dtype=np.float32)
    sources = positions - share * (positions - centre[:, None, None, None])
    return np.asarray(ndimage.map_coordinates(smooth, sources, order=3, mode="nearest"), dtype=np.float32)


_CHANGES: dict[LesionKind, Callable[[_Site, float], tuple[FloatArray, FloatArray]]] = {
    "dark": lambda site, strength: _scaled(site, -strength),
    "bright": _scaled,
    "texture": _with_texture,
    "mass_effect": _expanded,
}
"""Kind → change of the smooth part by a strength: the new smooth part, and where it was changed, 0 to 1."""


def _as_stored(values: FloatArray, no_signal: float) -> Callable[[FloatArray], FloatArray]:
    """Return a function that stores voxels as the foreground of a scan stores its values.

    They are rounded if the scan has whole numbers only. If the foreground is above the intensity of zero signal,
    the lesion is, too: it remains foreground.
    """
    lowest, whole = float(values.min()), bool(np.all(values == np.round(values)))
    lowest -= max(0.9 * (lowest - no_signal), 0.0)
    return lambda voxels: np.maximum(np.round(voxels), np.ceil(lowest)) if whole else np.maximum(voxels, lowest)


def _radius(lesion: MaskArray) -> float:
    """Return the radius in voxels of a ball with the volume of a lesion."""
    return float((3 * lesion.sum() / (4 * np.pi)) ** (1 / 3))


def _soft_edge(lesion: MaskArray, edge_voxels: float | Sequence[float]) -> FloatArray:
    """Return the lesion with a Gaussian edge, scaled to a maximum of 1."""
    weight = ndimage.gaussian_filter(lesion.astype(np.float32), edge_voxels)
    return np.asarray(weight / weight.max(), dtype=np.float32)
