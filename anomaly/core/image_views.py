"""Cut a preprocessed volume into the images that a model takes, and assemble their maps to a volume.

A volume is ``(I, J, K)`` on the template grid. A model takes images ``(C, *S)``:

- ``slice``: 2D slices across one axis; C = 2 · neighbours + 1 adjacent slices, of which the middle is the target;
- ``patch``: 3D patches, overlapping, C = 1;
- ``volume``: the whole volume as one image, C = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.covariates import Covariate
from anomaly.core.volume import FloatArray, Geometry, MaskArray

Array = npt.NDArray[Any]


class VolumeSource(Protocol):
    """Preprocessed volumes on one grid, read on access. Models are trained on one."""

    @property
    def grid(self) -> Geometry:
        """The common grid of all volumes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        """Return the voxels float32 ``(I, J, K)`` (0 outside the mask) and the foreground mask."""
        ...

    def covariates(self, index: int) -> FloatArray:
        """Return the covariates of a scan's subject ``(D,)``, NaN where unknown.

        For scans, D = 2: age and sex, see :func:`anomaly.core.covariates.covariates`. Other data sets may have
        other covariates.
        """
        ...


@runtime_checkable
class DefinesCovariates(Protocol):
    """A source that defines its covariates, so that a model conditioned on other covariates can be refused."""

    @property
    def covariate_definitions(self) -> tuple[Covariate, ...]:
        """The definition of each of the D covariates."""
        ...


class ImageView(Settings):
    """How a volume is cut into images."""

    kind: Literal["slice", "patch", "volume"] = Field("slice", description="slice (2D), patch (3D) or volume")
    axis: Literal[0, 1, 2] = Field(2, description="slice: axis perpendicular to the slices; 2 = axial, 1 = coronal")
    neighbours: int = Field(0, ge=0, description="slice: adjacent slices on each side, as extra channels")
    size: tuple[int, int, int] = Field((32, 32, 32), description="patch: voxels along I, J, K")
    overlap: float = Field(0.5, ge=0, lt=1, description="patch: share of a patch that the next one overlaps")

    @property
    def channels(self) -> int:
        """Number of input channels C."""
        return 2 * self.neighbours + 1 if self.kind == "slice" else 1

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 otherwise."""
        return 2 if self.kind == "slice" else 3

    def image_shape(self, volume_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Return S, the spatial shape of one image."""
        if self.kind == "slice":
            return tuple(n for axis, n in enumerate(volume_shape) if axis != self.axis)
        if self.kind == "patch":
            return tuple(min(p, n) for p, n in zip(self.size, volume_shape, strict=True))
        return volume_shape

    def locations(self, mask: MaskArray) -> list[tuple[slice, slice, slice]]:
        """Return the locations of the images that together cover a mask, as index slices of the volume."""
        if self.kind == "volume" or not mask.any():
            return [_whole_volume(mask.shape)]
        if self.kind == "slice":
            others = tuple(a for a in range(3) if a != self.axis)
            return [_slice_location(mask.shape, self.axis, int(k)) for k in np.flatnonzero(mask.any(axis=others))]
        return [location for location in self._patches(mask.shape) if mask[location].any()]

    def cut(self, voxels: Array, location: tuple[slice, slice, slice]) -> Array:
        """Return the image ``(C, *S)`` at a location; adjacent slices beyond the edge repeat the edge slice."""
        if self.kind != "slice":
            return voxels[location][None]
        centre, last = location[self.axis].start, voxels.shape[self.axis] - 1
        around = np.clip(np.arange(centre - self.neighbours, centre + self.neighbours + 1), 0, last)
        # Not np.take: it would copy the whole volume if that is in Fortran order, as NIfTI files are.
        image: Array = np.moveaxis(voxels, self.axis, 0)[around]
        return image

    def target_slice(self, values: Array, location: tuple[slice, slice, slice]) -> Array:
        """Return the part ``(1, *S)`` of a volume that the image at a location predicts."""
        part = values[location]
        return np.moveaxis(part, self.axis, 0) if self.kind == "slice" else part[None]

    def assemble(
        self, shape: tuple[int, int, int], pieces: Iterator[tuple[tuple[slice, slice, slice], Array]]
    ) -> FloatArray:
        """Assemble maps of images to a volume; where they overlap, they are averaged.

        Patches are weighted by a Gaussian around their centre, so that their borders leave no seams.

        Parameters
        ----------
        shape
            Shape ``(I, J, K)`` of the volume.
        pieces
            Locations, and the map ``(1, *S)`` at each.

        Returns
        -------
        ndarray
            float32 ``(I, J, K)``, 0 where there is no map.
        """
        total = np.zeros(shape, dtype=np.float32)
        weight = np.zeros(shape, dtype=np.float32)
        for location, piece in pieces:
            if self.kind == "slice":
                total[location] += np.moveaxis(piece, 0, self.axis)
                weight[location] += 1
            else:
                window = _gaussian_window(piece.shape[1:]) if self.kind == "patch" else np.float32(1)
                total[location] += window * piece[0]
                weight[location] += window
        return np.asarray(total / np.maximum(weight, 1e-6), dtype=np.float32)

    def _patches(self, shape: tuple[int, ...]) -> list[tuple[slice, slice, slice]]:
        starts = [_patch_starts(n, min(p, n), self.overlap) for n, p in zip(shape, self.size, strict=True)]
        return [
            (slice(i, i + min(self.size[0], shape[0])), slice(j, j + min(self.size[1], shape[1])),
             slice(k, k + min(self.size[2], shape[2])))
            for i in starts[0] for j in starts[1] for k in starts[2]
        ]  # fmt: skip


def _whole_volume(shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    i, j, k = shape
    return slice(0, i), slice(0, j), slice(0, k)


def _slice_location(shape: tuple[int, ...], axis: int, index: int) -> tuple[slice, slice, slice]:
    location = list(_whole_volume(shape))
    location[axis] = slice(index, index + 1)
    return location[0], location[1], location[2]


def _patch_starts(length: int, patch: int, overlap: float) -> list[int]:
    step = max(1, round(patch * (1 - overlap)))
    return sorted({*range(0, length - patch, step), length - patch})


def _gaussian_window(size: tuple[int, ...]) -> FloatArray:
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in size]
    i, j, k = axes
    return np.asarray(i[:, None, None] * j[None, :, None] * k[None, None, :] + 1e-3, dtype=np.float32)
