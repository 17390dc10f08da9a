"""The healthy scans that are most like a scan: a comparison a reader can check, beside the numbers.

A scan's code (:mod:`anomaly.scoring.scan_embedding`) is standardised by the training scans, so that every
dimension counts
alike and two healthy scans taken at random have a cosine of about 0, and half of their bits in common:

    z = (code − mean) / SD
    cosine:  z·z′ / (|z| |z′|)
    hash:    bits b = [z R > 0], R random signs;  1 − Hamming(b, b′) / B

The share of equal bits grows with the cosine, about as 1 − arccos(cosine) / π, and 128 bits per scan are searched
faster than the codes of very many scans.

Source: Charikar 2002, "Similarity estimation techniques from rounding algorithms" (bits of random projections);
Achlioptas 2003, "Database-friendly random projections" (random signs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from anomaly.core.results import Neighbour
from anomaly.core.volume import FloatArray

Similarity = Literal["cosine", "hash"]
Pictures = dict[str, npt.NDArray[np.uint8]]

BITS = 128
PLANES = ("axial", "coronal", "sagittal")
SEED = 0
SMALLEST = 1e-6  # SD of a dimension that says nothing


@dataclass(frozen=True, eq=False)
class HealthyIndex:
    """The training scans, to be searched. Nothing in it names a subject.

    Parameters
    ----------
    codes
        float32 ``(n, D)``, standardised.
    centre, scale
        float32 ``(D,)``: a code is standardised by ``(code − centre) · scale``; the scale of a dimension that does
        not vary is 0.
    directions
        int8 ``(D, B)`` of 1 and −1: the projections that make the bits.
    bits
        uint8 ``(n, B / 8)``, packed.
    ages
        float32 ``(n,)`` whole years, NaN where not known.
    pictures
        Plane → uint8 ``(n, across, up)``: the middle slice of each scan, see :func:`middle_slices`.
    by
        Which similarity a search uses.
    """

    codes: FloatArray
    centre: FloatArray
    scale: FloatArray
    directions: npt.NDArray[np.int8]
    bits: npt.NDArray[np.uint8]
    ages: FloatArray
    pictures: Pictures
    by: Similarity = "cosine"

    def __len__(self) -> int:
        return len(self.codes)

    def nearest(self, code: FloatArray, k: int, by: Similarity | None = None) -> list[tuple[int, float]]:
        """Return index and similarity of the ``k`` scans most like a scan's code ``(D,)``, the most similar first.

        Of scans that are equally similar the first comes first.
        """
        z = (code - self.centre) * self.scale
        found = self._equal_bits(z) if (by or self.by) == "hash" else self._cosines(z)
        order = np.argsort(-found, kind="stable")[:k]
        return [(int(index), float(found[index])) for index in order]

    def neighbours(self, code: FloatArray, k: int) -> tuple[Neighbour, ...]:
        """Return the ``k`` scans most like a scan's code ``(D,)``, for people: numbered, not named."""
        found = self.nearest(code, k)
        return tuple(Neighbour(self.label(index), round(similarity, 4), index) for index, similarity in found)

    def label(self, index: int) -> str:
        """Return what a scan is called, e.g. ``"healthy scan 17, 54 years"``."""
        age = float(self.ages[index])
        return f"healthy scan {index + 1}" + ("" if math.isnan(age) else f", {age:.0f} years")

    def slices_of(self, neighbours: Sequence[Neighbour]) -> Pictures:
        """Return the middle slices of some scans, plane → uint8 ``(k, across, up)``."""
        chosen = [neighbour.index for neighbour in neighbours]
        return {plane: pictures[chosen] for plane, pictures in self.pictures.items()}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything by name, for saving."""
        kept = {name: getattr(self, name) for name in ("codes", "centre", "scale", "directions", "bits", "ages")}
        pictures = {f"picture.{plane}": values for plane, values in self.pictures.items()}
        return {**kept, **pictures}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], by: Similarity) -> HealthyIndex:
        """Return the index that :meth:`arrays` was saved from."""
        kept = {name: values for name, values in arrays.items() if not name.startswith("picture.")}
        pictures = {plane: arrays[f"picture.{plane}"] for plane in PLANES}
        return cls(**kept, pictures=pictures, by=by)

    def _cosines(self, z: FloatArray) -> FloatArray:
        lengths = np.linalg.norm(self.codes, axis=1) * np.linalg.norm(z)
        return np.asarray((self.codes @ z) / np.maximum(lengths, SMALLEST), dtype=np.float32)

    def _equal_bits(self, z: FloatArray) -> FloatArray:
        different = np.unpackbits(self.bits ^ hashed(z, self.directions), axis=1).sum(axis=1)
        return np.asarray(1 - different / self.directions.shape[1], dtype=np.float32)


def build_index(codes: FloatArray, ages: FloatArray, pictures: Sequence[Pictures], by: Similarity) -> HealthyIndex:
    """Return the index of training scans.

    Parameters
    ----------
    codes
        ``(n, D)`` as the model gives them.
    ages
        ``(n,)`` years, NaN where not known; kept as whole years.
    pictures
        :func:`middle_slices` of each scan; empty to keep none.
    """
    centre, sd = codes.mean(axis=0), codes.std(axis=0)
    scale = np.divide(1, sd, out=np.zeros_like(sd), where=sd > SMALLEST)
    z = np.asarray((codes - centre) * scale, dtype=np.float32)
    signs = np.random.default_rng(SEED).integers(0, 2, size=(codes.shape[1], BITS)) * 2 - 1
    directions = signs.astype(np.int8)
    return HealthyIndex(
        codes=z,
        centre=centre.astype(np.float32),
        scale=scale.astype(np.float32),
        directions=directions,
        bits=hashed(z, directions),
        ages=np.round(ages).astype(np.float32),
        pictures={plane: np.stack([of_scan[plane] for of_scan in pictures]) for plane in PLANES if pictures},
        by=by,
    )


def hashed(z: FloatArray, directions: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return the packed bits ``(…, B / 8)`` of standardised codes ``(…, D)``."""
    return np.packbits(z @ directions.astype(np.float32) > 0, axis=-1)


def middle_slices(voxels: FloatArray, intensity_max: float) -> Pictures:
    """Return the slices through the middle of the template, plane → uint8 ``(across, up)``; 255 is white.

    Parameters
    ----------
    voxels
        A preprocessed volume ``(I, J, K)``.
    intensity_max
        The intensity that is white; 0 is black.
    """
    i, j, k = (n // 2 for n in voxels.shape)
    cuts = {"axial": voxels[:, :, k], "coronal": voxels[:, j], "sagittal": voxels[i]}
    return {plane: (np.clip(cut / intensity_max, 0, 1) * 255).astype(np.uint8) for plane, cut in cuts.items()}
