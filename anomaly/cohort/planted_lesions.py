"""Plant synthetic lesions in healthy scans. They do not replace real disease and are always labelled synthetic.

They are used to choose checkpoints without the pathology test set, and to measure detection and localisation on the
same scans with and without a lesion, so that differences between scanners cannot be detected instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.errors import InputError, unknown_name
from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import FloatArray, Geometry, MaskArray, Volume
from anomaly.preprocessing.components import largest_component
from anomaly.preprocessing.grid import resample_mask

LesionKind = Literal["dark", "bright", "texture", "mass_effect"]
LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)

LESION_STRENGTHS: dict[LesionKind, tuple[float, float]] = {
    "dark": (0.15, 0.50),  # decrease of the signal, as a share
    "bright": (0.15, 0.50),  # increase of the signal, as a share
    "texture": (0.5, 1.5),  # SD of the texture, relative to the SD of the intensities around the lesion
    "mass_effect": (0.3, 0.6),  # displacement at the rim of the lesion, in lesion radii
}
"""Kind of lesion → range of its strength."""

EDGE_SD_VOXELS = 0.7  # SD of the soft edge of a lesion


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
    weight = _soft_edge(inside, edge_voxels) * mask
    if kind == "mass_effect":
        changed = _displaced(voxels, mask, inside, strength)
    elif kind == "texture":
        neighbourhood = ndimage.binary_dilation(inside, iterations=3) & mask
        changed = _with_texture(voxels, neighbourhood, weight, strength, rng)
    else:
        factor = 1 + (strength if kind == "bright" else -strength) * weight
        changed = np.asarray(no_signal + (voxels - no_signal) * factor, dtype=np.float32)
    planted = np.where(mask, changed, voxels).astype(np.float32)
    return PlantedScan(planted, mask, inside, kind, strength)


def draw_strength(kind: LesionKind, rng: np.random.Generator) -> float:
    """Draw a strength uniformly from the range of a kind of lesion."""
    return float(rng.uniform(*LESION_STRENGTHS[kind]))


def random_blob(mask: MaskArray, volume_ml: float, voxel_ml: float, rng: np.random.Generator) -> MaskArray:
    """Draw a connected, irregular lesion of about the given volume inside a mask ``(I, J, K)``.

    The lesion is a ball around a random voxel with a surface displaced by smooth noise: the largest component of
    the ``volume_ml / voxel_ml`` voxels with the lowest ``distance / radius + noise``.
    """
    n_voxels = max(1, round(volume_ml / voxel_ml))
    if n_voxels > mask.sum():
        raise InputError(
            f"a lesion of {volume_ml:g} ml does not fit in {mask.sum() * voxel_ml:.1f} ml of foreground"
        )
    radius = (3 * n_voxels / (4 * np.pi)) ** (1 / 3)
    deep = ndimage.binary_erosion(mask, iterations=max(1, round(radius / 2)))
    centres = np.argwhere(deep if deep.any() else mask)
    centre = centres[rng.integers(len(centres))]
    distance = np.linalg.norm(np.moveaxis(np.indices(mask.shape), 0, -1) - centre, axis=-1)
    field = distance / radius + 0.35 * _smooth_noise(mask.shape, radius / 2, rng)
    field[~mask] = np.inf
    blob = field <= np.partition(field.ravel(), n_voxels - 1)[n_voxels - 1]
    return largest_component(blob)


class LesionShapes(Sequence[MaskArray]):
    """Real lesion masks, read and resampled to a grid on access.

    Parameters
    ----------
    folder
        Folder of binary masks in MNI space (``*.nii`` or ``*.nii.gz``), used in the order of their names.
    grid
        The grid in MNI space to resample them to.
    """

    def __init__(self, folder: Path, grid: Geometry) -> None:
        self.paths = sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")])
        self.grid = grid
        if not self.paths:
            raise InputError(f"no lesion shapes in {folder}; expected binary masks *.nii or *.nii.gz in MNI space")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image = cast("SpatialImage", nib.load(self.paths[index]))
        shape = np.asarray(image.dataobj) > 0
        i, j, k = shape.shape
        return resample_mask(shape, Geometry((i, j, k), image.affine), self.grid, antialias=False)


def lesion_shapes(folder: Path, grid: Geometry) -> LesionShapes:
    """Return the real lesion masks ``(I, J, K)`` of a folder, resampled to a grid on access."""
    return LesionShapes(folder, grid)


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
    edge = [edge_mm / s for s in volume.geometry.spacing]
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


def _with_texture(
    voxels: FloatArray, neighbourhood: MaskArray, weight: FloatArray, strength: float, rng: np.random.Generator
) -> FloatArray:
    """Add band-limited noise with weighted mean 0 over the lesion: the same mean intensity, another texture."""
    noise = _smooth_noise(voxels.shape, 1.0, rng)
    noise = noise - np.sum(noise * weight) / np.sum(weight)
    return np.asarray(voxels + weight * strength * float(voxels[neighbourhood].std()) * noise, dtype=np.float32)


def _displaced(voxels: FloatArray, mask: MaskArray, lesion: MaskArray, strength: float) -> FloatArray:
    """Displace tissue outwards: sample every voxel at a position closer to the centre of the lesion.

    A voxel at distance r from the centre is sampled at ``r · (1 − strength · falloff · outline)``. Falloff is 1
    inside the radius R of the lesion and 0 beyond 2 R. The outline factor decreases to 0 at the edge of the
    foreground, so that the brain keeps its outline.
    """
    centre = np.argwhere(lesion).mean(axis=0)
    radius = (3 * lesion.sum() / (4 * np.pi)) ** (1 / 3)
    positions = np.indices(voxels.shape, dtype=np.float32)
    offset = positions - centre[:, None, None, None]
    falloff = np.clip(2 - np.linalg.norm(offset, axis=0) / radius, 0, 1)
    outline = np.clip(ndimage.distance_transform_edt(mask) / radius, 0, 1)
    sources = positions - strength * falloff * outline * offset
    return np.asarray(ndimage.map_coordinates(voxels, sources, order=1, mode="nearest"), dtype=np.float32)


def _soft_edge(lesion: MaskArray, edge_voxels: float | Sequence[float]) -> FloatArray:
    """Return the lesion with a Gaussian edge, scaled to a maximum of 1."""
    weight = ndimage.gaussian_filter(lesion.astype(np.float32), edge_voxels)
    return np.asarray(weight / weight.max(), dtype=np.float32)


def _smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-12))
