"""How each kind of lesion changes the smooth part of a scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomaly.cohort.fine_grain import COARSE_SD_VOXELS, grain_energy, smooth_part
from anomaly.cohort.lesion_shapes import ball_radius, smooth_noise
from anomaly.core.errors import InputError
from anomaly.core.volume import FloatArray, MaskArray, Modality

TEXTURE_SD_VOXELS = (1.5, 3.0)  # SDs of the Gaussians between which the noise of a texture lies
CORE_DEPTH, SOLID_DEPTH = 0.6, 0.3  # least depth of the core, and of core and rim, as a share of the greatest
MIN_WEIGHT = 1e-3  # of the soft edge; tissue further out does not change
UNSEEN_ENERGY = 0.015  # of the grain, by which a texture may increase it
OEDEMA_IN_CT = -0.25  # change of the density around a haemorrhage, as a share of that above water

FOCUS_SIGN: dict[Modality, int] = {Modality.T2W: 1, Modality.FLAIR: 1}
"""Whether foci of demyelination are bright (1); elsewhere they are dark."""

TUMOUR_SIGNAL: dict[Modality, tuple[float, float, float]] = {
    Modality.T1W: (-1.0, -0.2, -0.5),
    Modality.T1W_CE: (-1.0, 1.0, -0.5),
    Modality.T2W: (1.0, 0.4, 0.8),
    Modality.FLAIR: (-0.3, 0.7, 1.0),
    Modality.CT: (-0.7, 0.2, -0.6),
}
"""Change of the signal of core, rim and oedema, relative to the strength of the lesion."""


@dataclass(frozen=True, eq=False)
class Site:
    """The part of a scan around a lesion.

    Parameters
    ----------
    voxels, mask, lesion
        ``(I, J, K)`` scan, foreground and lesion inside it.
    smooth
        The voxels without their fine grain.
    modality
        Contrast of the scan.
    no_signal, hounsfield
        The intensity of zero signal, in CT of 0 HU; and in CT the intensity of one HU.
    spacing
        Size of a voxel along each axis, for the shape of a lesion.
    edge_voxels
        SD of the soft edge along each axis.
    rng
        Random generator.
    """

    voxels: FloatArray
    mask: MaskArray
    lesion: MaskArray
    smooth: FloatArray
    modality: Modality
    no_signal: float
    hounsfield: float
    spacing: Sequence[float]
    edge_voxels: float | Sequence[float]
    rng: np.random.Generator

    def weight_of(self, part: MaskArray) -> FloatArray:
        """Return a part of the lesion with its soft edge, 0 to 1, 0 outside the foreground."""
        highest = ndimage.gaussian_filter(self.lesion.astype(np.float32), self.edge_voxels).max()
        weight = ndimage.gaussian_filter(part.astype(np.float32), self.edge_voxels) / highest
        return np.asarray(np.where(self.mask & (weight > MIN_WEIGHT), weight, 0), dtype=np.float32)

    def depth(self) -> FloatArray:
        """Return the distance to the surface of the lesion, 0 outside, as a share of the greatest."""
        depth = ndimage.distance_transform_edt(self.lesion, sampling=self.spacing)
        return np.asarray(depth / depth.max(), dtype=np.float32)


Change = Callable[[Site, float], tuple[FloatArray, FloatArray]]
"""Changes a site by a strength; returns the new smooth part ``(I, J, K)`` and where it was changed, 0 to 1."""


def scaled(site: Site, change: float) -> tuple[FloatArray, FloatArray]:
    """Multiply the signal by ``1 + change``."""
    weight = site.weight_of(site.lesion)
    return np.asarray(site.smooth + change * weight * (site.smooth - site.no_signal), dtype=np.float32), weight


def focal(site: Site, strength: float) -> tuple[FloatArray, FloatArray]:
    """Make foci of demyelination: dark on T1w and CT, bright on T2w and FLAIR."""
    return scaled(site, FOCUS_SIGN.get(site.modality, -1) * strength)


def textured(site: Site, strength: float) -> tuple[FloatArray, FloatArray]:
    """Add noise that is coarser than the grain and has mean 0 over the lesion: the same mean, another texture.

    The noise is weaker than the strength says where the smooth part has little energy to spare for it.
    """
    weight = site.weight_of(site.lesion)
    fine, coarse = TEXTURE_SD_VOXELS
    noise = smooth_noise(site.voxels.shape, fine, site.rng)
    noise = noise - ndimage.gaussian_filter(noise, coarse)
    noise = (noise - np.sum(noise * weight) / np.sum(weight)) / noise.std()
    neighbourhood = ndimage.binary_dilation(site.lesion, iterations=3) & site.mask
    sd = min(strength * float(site.voxels[neighbourhood].std()), _highest_sd(site, weight, noise))
    return np.asarray(site.smooth + weight * sd * noise, dtype=np.float32), weight


def _highest_sd(site: Site, weight: FloatArray, noise: npt.NDArray[np.float64]) -> float:
    """Return the SD of noise that brings about as much energy into the grain as the structure that it replaces."""
    structure = weight * (site.smooth - smooth_part(site.smooth, site.mask, COARSE_SD_VOXELS))
    before, without, added = (
        grain_energy(voxels, site.mask, site.lesion)
        for voxels in (site.voxels, site.voxels - structure, weight * noise)
    )
    spare = max(before - without, 0) + UNSEEN_ENERGY * before
    return float(np.sqrt(spare / max(added, 1e-12)))


def expanded(site: Site, strength: float) -> tuple[FloatArray, FloatArray]:
    """Displace tissue away from the centre: the lesion is expanded, and the tissue around it is compressed.

    The displacement decreases from the surface of the lesion to 0 at a distance of the lesion's radius. It also
    decreases towards the edge of the foreground, so that the brain keeps its outline.
    """
    radius = ball_radius(float(site.lesion.sum() * np.prod(site.spacing)))
    beyond, inside = (
        ndimage.distance_transform_edt(region, sampling=site.spacing) / radius
        for region in (~site.lesion, site.mask)
    )
    where = np.asarray(np.clip(1 - beyond, 0, 1) * np.clip(inside, 0, 1), dtype=np.float32)
    return _displaced(site.smooth, np.argwhere(site.lesion).mean(axis=0), strength * where), where


def tumour(site: Site, strength: float) -> tuple[FloatArray, FloatArray]:
    """Make a tumour: an irregular core, a rim, and oedema around them, which they compress."""
    depth = site.depth()
    irregular = depth + 0.1 * smooth_noise(depth.shape, 2.0, site.rng)
    solid = site.lesion & (irregular > SOLID_DEPTH)
    core = solid & (irregular > CORE_DEPTH)
    centre = np.array(ndimage.center_of_mass(depth**2))
    smooth = _displaced(site.smooth, centre, strength * np.clip(depth / SOLID_DEPTH, 0, 1))
    parts = (core, solid & ~core, site.lesion & ~solid)
    signal = TUMOUR_SIGNAL.get(site.modality, TUMOUR_SIGNAL[Modality.T1W])
    change = sum(share * site.weight_of(part) for share, part in zip(signal, parts, strict=True))
    changed = smooth + strength * change * (smooth - site.no_signal)
    return np.asarray(changed, dtype=np.float32), site.weight_of(site.lesion)


def haemorrhage(site: Site, density: float) -> tuple[FloatArray, FloatArray]:
    """Make a haemorrhage in the brain: blood of a density in HU, and a dark rim of oedema."""
    blood = site.lesion & (site.depth() > SOLID_DEPTH)
    oedema = site.weight_of(site.lesion & ~blood)
    changed = site.smooth + OEDEMA_IN_CT * oedema * (site.smooth - site.no_signal)
    return _filled_with_blood(site, changed, blood, density), site.weight_of(site.lesion)


def subdural(site: Site, density: float) -> tuple[FloatArray, FloatArray]:
    """Make a haematoma beside the brain: blood of a density in HU."""
    return _filled_with_blood(site, site.smooth, site.lesion, density), site.weight_of(site.lesion)


def _filled_with_blood(site: Site, smooth: FloatArray, part: MaskArray, density: float) -> FloatArray:
    if not site.modality.is_ct:
        raise InputError(
            f"a haemorrhage of {density:.0f} HU cannot be planted in {site.modality}; expected CT, because the "
            "signal of blood in MR depends on its age; choose another kind of lesion"
        )
    level = site.no_signal + density * site.hounsfield
    return np.asarray(smooth + site.weight_of(part) * (level - smooth), dtype=np.float32)


def _displaced(smooth: FloatArray, centre: npt.NDArray[Any], share: npt.NDArray[Any]) -> FloatArray:
    """Sample every voxel at a position that is closer to the centre by a share of its distance."""
    positions = np.indices(smooth.shape, dtype=np.float32)
    sources = positions - share * (positions - centre[:, None, None, None])
    return np.asarray(ndimage.map_coordinates(smooth, sources, order=3, mode="nearest"), dtype=np.float32)
