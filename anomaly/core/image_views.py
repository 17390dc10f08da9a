"""How images that a model sees are cut from a preprocessed volume, and put back.

A volume is ``(I, J, K)`` on the template grid. A model sees images ``(C, *S)``:

- ``slice``: 2D slices across one axis; C = 2 · neighbours + 1 neighbouring slices, the middle one is the target;
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
    """Preprocessed volumes on one grid, read when asked for. What models train on."""

    @property
    def grid(self) -> Geometry:
        """The grid all volumes share."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        """Return the voxels float32 ``(I, J, K)`` (0 outside the mask) and the foreground mask."""
        ...

    def covariates(self, index: int) -> FloatArray:
        """Return what is known of a scan's subject ``(D,)``, NaN for what is not.

        Of real scans :func:`anomaly.core.covariates.covariates`, age and sex; other volumes may come with others.
        """
        ...


@runtime_checkable
class DescribesCovariates(Protocol):
    """A source that also says what its covariates are, so that a model which is told others can be refused."""

    @property
    def described(self) -> tuple[Covariate, ...]:
        """What each of the D numbers of a subject is."""
        ...


class ImageView(Settings):
    """How a volume is cut into images."""

    kind: Literal["slice", "patch", "volume"] = "slice"
    axis: Literal[0, 1, 2] = Field(2, description="slice: the axis that is cut across; 2 = axial, 1 = coronal")
    neighbours: int = Field(0, ge=0, description="slice: slices on each side given as extra channels")
    size: tuple[int, int, int] = Field((32, 32, 32), description="patch: voxels along I, J, K")
    overlap: float = Field(0.5, ge=0, lt=1, description="patch: share of a patch that its neighbour covers too")

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
        """Return where the images lie that together cover the mask, as index slices of the volume."""
        if self.kind == "volume" or not mask.any():
            return [_whole(mask.shape)]
        if self.kind == "slice":
            others = tuple(a for a in range(3) if a != self.axis)
            return [_across(mask.shape, self.axis, int(k)) for k in np.flatnonzero(mask.any(axis=others))]
        return [place for place in self._patches(mask.shape) if mask[place].any()]

    def cut(self, voxels: Array, place: tuple[slice, slice, slice]) -> Array:
        """Return the image ``(C, *S)`` at a place; neighbours beyond the edge repeat the edge slice."""
        if self.kind != "slice":
            return voxels[place][None]
        centre, last = place[self.axis].start, voxels.shape[self.axis] - 1
        around = np.clip(np.arange(centre - self.neighbours, centre + self.neighbours + 1), 0, last)
        # Not np.take, which copies a whole volume in Fortran order, as NIfTI stores it, to take one slice of it.
        image: Array = np.moveaxis(voxels, self.axis, 0)[around]
        return image

    def target_slice(self, values: Array, place: tuple[slice, slice, slice]) -> Array:
        """Return the part ``(1, *S)`` of a volume that the image at a place speaks of."""
        part = values[place]
        return np.moveaxis(part, self.axis, 0) if self.kind == "slice" else part[None]

    def assemble(
        self, shape: tuple[int, int, int], pieces: Iterator[tuple[tuple[slice, slice, slice], Array]]
    ) -> FloatArray:
        """Return the volume ``(I, J, K)`` of image maps ``(1, *S)``; overlapping ones are averaged.

        Patches are weighted by a Gaussian that favours their centre, so that seams do not show.
        """
        total = np.zeros(shape, dtype=np.float32)
        weight = np.zeros(shape, dtype=np.float32)
        for place, piece in pieces:
            if self.kind == "slice":
                total[place] += np.moveaxis(piece, 0, self.axis)
                weight[place] += 1
            else:
                window = _window(piece.shape[1:]) if self.kind == "patch" else np.float32(1)
                total[place] += window * piece[0]
                weight[place] += window
        return np.asarray(total / np.maximum(weight, 1e-6), dtype=np.float32)

    def _patches(self, shape: tuple[int, ...]) -> list[tuple[slice, slice, slice]]:
        starts = [_starts(n, min(p, n), self.overlap) for n, p in zip(shape, self.size, strict=True)]
        return [
            (slice(i, i + min(self.size[0], shape[0])), slice(j, j + min(self.size[1], shape[1])),
             slice(k, k + min(self.size[2], shape[2])))
            for i in starts[0] for j in starts[1] for k in starts[2]
        ]  # fmt: skip


def _whole(shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    i, j, k = shape
    return slice(0, i), slice(0, j), slice(0, k)


def _across(shape: tuple[int, ...], axis: int, index: int) -> tuple[slice, slice, slice]:
    place = list(_whole(shape))
    place[axis] = slice(index, index + 1)
    return place[0], place[1], place[2]


def _starts(length: int, patch: int, overlap: float) -> list[int]:
    step = max(1, round(patch * (1 - overlap)))
    return sorted({*range(0, length - patch, step), length - patch})


def _window(size: tuple[int, ...]) -> FloatArray:
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in size]
    i, j, k = axes
    return np.asarray(i[:, None, None] * j[None, :, None] * k[None, None, :] + 1e-3, dtype=np.float32)
