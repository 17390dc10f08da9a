"""Find the healthy training scans that are most similar to a scan, so that a reader can compare them.

The code of a scan (:mod:`anomaly.scoring.scan_embedding`) is standardised by the training scans. Every dimension
then has equal weight, and two random healthy scans have a cosine similarity of about 0 and half of their bits
in common:

    z = (code − mean) / SD
    cosine:  z·z′ / (|z| |z′|)
    hash:    bits b = [z R > 0], R random signs;  1 − Hamming(b, b′) / B

The share of equal bits grows with the cosine, about as 1 − arccos(cosine) / π. Comparing 128 bits per scan is
faster than comparing the codes of very many scans.

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
PlaneSlices = dict[str, npt.NDArray[np.uint8]]

N_BITS = 128
PLANES = ("axial", "coronal", "sagittal")
PROJECTION_SEED = 0
MIN_SD = 1e-6  # a dimension with a smaller SD is constant and does not count
MIN_LENGTH = 1e-6  # keeps the cosine of a code of zeros finite

SAVED_NAMES = {
    "codes": "codes", "mean": "centre", "inverse_sd": "scale", "projections": "directions", "bits": "bits",
    "ages": "ages",
}  # fmt: skip
"""Attribute → name of its array in the saved index."""
SLICES_PREFIX = "picture."


@dataclass(frozen=True, eq=False)
class HealthyIndex:
    """The training scans, ready to be searched. Nothing in it names a subject.

    Parameters
    ----------
    codes
        float32 ``(n, D)``, standardised.
    mean, inverse_sd
        float32 ``(D,)``: a code is standardised by ``(code − mean) · inverse_sd``; ``inverse_sd`` is 0 for a
        dimension that does not vary.
    projections
        int8 ``(D, B)`` of 1 and −1: the random projections of which the bits are the signs.
    bits
        uint8 ``(n, B / 8)``, packed.
    ages
        float32 ``(n,)`` whole years, NaN where unknown.
    slices
        Plane → uint8 ``(n, across, up)``: the middle slice of each scan, see :func:`middle_slices`.
    metric
        Which similarity a search uses.
    """

    codes: FloatArray
    mean: FloatArray
    inverse_sd: FloatArray
    projections: npt.NDArray[np.int8]
    bits: npt.NDArray[np.uint8]
    ages: FloatArray
    slices: PlaneSlices
    metric: Similarity = "cosine"

    def __len__(self) -> int:
        return len(self.codes)

    def nearest(self, code: FloatArray, k: int, metric: Similarity | None = None) -> list[tuple[int, float]]:
        """Return index and similarity of the ``k`` scans that are most similar to a code ``(D,)``, in that order.

        Of scans that are equally similar the first comes first.
        """
        z = (code - self.mean) * self.inverse_sd
        found = self._equal_bits(z) if (metric or self.metric) == "hash" else self._cosines(z)
        order = np.argsort(-found, kind="stable")[:k]
        return [(int(index), float(found[index])) for index in order]

    def neighbours(self, code: FloatArray, k: int) -> tuple[Neighbour, ...]:
        """Return the ``k`` most similar scans as they are shown to readers: numbered, without a name."""
        found = self.nearest(code, k)
        return tuple(Neighbour(self.label(index), round(similarity, 4), index) for index, similarity in found)

    def label(self, index: int) -> str:
        """Return the label of a scan, e.g. ``"healthy scan 17, 54 years"``."""
        age = float(self.ages[index])
        return f"healthy scan {index + 1}" + ("" if math.isnan(age) else f", {age:.0f} years")

    def slices_of(self, neighbours: Sequence[Neighbour]) -> PlaneSlices:
        """Return the middle slices of some scans, plane → uint8 ``(k, across, up)``."""
        indices = [neighbour.index for neighbour in neighbours]
        return {plane: slices[indices] for plane, slices in self.slices.items()}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays by the names under which they are saved."""
        arrays = {saved: getattr(self, attribute) for attribute, saved in SAVED_NAMES.items()}
        return arrays | {SLICES_PREFIX + plane: slices for plane, slices in self.slices.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], metric: Similarity) -> HealthyIndex:
        """Return the index whose :meth:`arrays` were saved."""
        attributes = {attribute: arrays[saved] for attribute, saved in SAVED_NAMES.items()}
        slices = {plane: arrays[SLICES_PREFIX + plane] for plane in PLANES}
        return cls(**attributes, slices=slices, metric=metric)

    def _cosines(self, z: FloatArray) -> FloatArray:
        lengths = np.linalg.norm(self.codes, axis=1) * np.linalg.norm(z)
        return np.asarray((self.codes @ z) / np.maximum(lengths, MIN_LENGTH), dtype=np.float32)

    def _equal_bits(self, z: FloatArray) -> FloatArray:
        n_different = np.unpackbits(self.bits ^ hash_bits(z, self.projections), axis=1).sum(axis=1)
        return np.asarray(1 - n_different / self.projections.shape[1], dtype=np.float32)


def build_index(
    codes: FloatArray, ages: FloatArray, slices: Sequence[PlaneSlices], metric: Similarity
) -> HealthyIndex:
    """Return the index of the training scans.

    Parameters
    ----------
    codes
        ``(n, D)`` as the model gives them.
    ages
        ``(n,)`` years, NaN where unknown; rounded to whole years.
    slices
        :func:`middle_slices` of each scan; empty for an index without images.
    """
    mean, sd = codes.mean(axis=0), codes.std(axis=0)
    inverse_sd = np.divide(1, sd, out=np.zeros_like(sd), where=sd > MIN_SD)
    z = np.asarray((codes - mean) * inverse_sd, dtype=np.float32)
    signs = np.random.default_rng(PROJECTION_SEED).integers(0, 2, size=(codes.shape[1], N_BITS)) * 2 - 1
    projections = signs.astype(np.int8)
    return HealthyIndex(
        codes=z,
        mean=mean.astype(np.float32),
        inverse_sd=inverse_sd.astype(np.float32),
        projections=projections,
        bits=hash_bits(z, projections),
        ages=np.round(ages).astype(np.float32),
        slices={plane: np.stack([of_scan[plane] for of_scan in slices]) for plane in PLANES if slices},
        metric=metric,
    )


def hash_bits(z: FloatArray, projections: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return the packed bits ``(…, B / 8)`` of standardised codes ``(…, D)``."""
    return np.packbits(z @ projections.astype(np.float32) > 0, axis=-1)


def middle_slices(voxels: FloatArray, intensity_max: float) -> PlaneSlices:
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
