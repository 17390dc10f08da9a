"""Arrays of a model on disk, in one safetensors file: as they are, or compact.

In a compact file, large arrays of 32-bit floats are stored in fewer bits; all other arrays are stored as they are.

* Of an array of voxels of the template grid, only the voxels inside are stored: those where an array of the file
  differs from its value at the first voxel of the grid, its background. Their values are integers between the
  smallest and the largest value, of 16 bits: the error is at most 1/131070 of the difference of these two. A mean
  and an SD need this: what counts is the error of a mean relative to the SD, not to itself.
* Each array of a stack of arrays of voxels, such as principal components, is stored in the same way with 8 bits:
  the error is at most 1/510 of that difference. So are all arrays of voxels with ``voxel_bits=8``.
* The numbers of any other array are 16-bit floats times a power of two, chosen by the largest number: the error is
  at most 2⁻¹¹ of each number that is not smaller than 2⁻²⁹ of the largest.

The header of the file says how each array was stored. Arrays are read as 32-bit floats in either case.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from anomaly.core.config import Settings
from anomaly.core.errors import DamagedFileError
from anomaly.core.files import atomic_path

Array = npt.NDArray[Any]
VoxelBits = Literal[8, 16]

HEADER_KEY = "compact"
INSIDE = "compact/inside"  # name of the array of bits of the voxels inside; no array of a model has a slash
SMALL = 1025  # an array of fewer numbers is stored as it is
LARGEST_EXPONENT = 15  # 16-bit floats are scaled to below 2¹⁵; the largest one is just below 2¹⁶
INTEGERS = {8: np.uint8, 16: np.uint16}
"""Bits per number → type of the stored integers."""


class Storage(Settings):
    """How an array of a compact file was stored: each row is ``stored · scale + offset``."""

    shape: tuple[int, ...] = Field(description="shape of the array")
    scales: tuple[float, ...] = Field(description="scale of each row: of each array of voxels, or of all numbers")
    offsets: tuple[float, ...] = Field(description="offset of each row")
    background: float | None = Field(description="value of the voxels outside; null: all numbers are stored")


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as they are."""
    with atomic_path(path) as temporary:
        save_file(_contiguous(arrays), temporary)


def write_compact_arrays(
    path: Path, arrays: Mapping[str, Array], grid_shape: tuple[int, ...], voxel_bits: VoxelBits = 16
) -> None:
    """Write arrays compactly; see the module's docstring.

    Parameters
    ----------
    grid_shape
        Shape of the template grid; an array whose last axes have this shape, flat or not, is one of voxels.
    voxel_bits
        Bits per number of a single array of voxels.
    """
    rows = {name: _rows(values, grid_shape) for name, values in arrays.items() if _is_large(values)}
    on_grid = {name: found for name, found in rows.items() if found.shape[1] == math.prod(grid_shape)}
    inside = np.zeros(math.prod(grid_shape), dtype=bool)
    for found in on_grid.values():
        inside |= (found != found.flat[0]).any(axis=0)
    stored, storages = dict(arrays), {}
    for name, found in rows.items():
        if name in on_grid:
            stored[name], scales, offsets = _as_integers(found[:, inside], 8 if len(found) > 1 else voxel_bits)
        else:
            stored[name], scales, offsets = _as_halves(found)
        storages[name] = Storage(
            shape=arrays[name].shape,
            scales=tuple(scales.tolist()),
            offsets=tuple(offsets.tolist()),
            background=float(found.flat[0]) if name in on_grid else None,
        )
    header = json.dumps({name: storage.model_dump(mode="json") for name, storage in storages.items()})
    with atomic_path(path) as temporary:
        save_file(_contiguous(stored | {INSIDE: np.packbits(inside)}), temporary, metadata={HEADER_KEY: header})


def read_arrays(path: Path) -> dict[str, Array]:
    """Read arrays by name, whether they were stored compactly or as they are.

    Raises
    ------
    DamagedFileError
        The arrays do not fit the header of the file.
    """
    arrays: dict[str, Array] = load_file(path)
    header = _header(path)
    if header is None:
        return arrays
    try:
        inside = arrays.pop(INSIDE)
        storages = {name: Storage.parse(values, str(path)) for name, values in json.loads(header).items()}
        return arrays | {name: _restored(arrays[name], storage, inside) for name, storage in storages.items()}
    except (KeyError, ValueError) as error:
        raise DamagedFileError(
            f"{path} is damaged: its arrays do not fit its header ({error}); restore the model from its source"
        ) from error


def _header(path: Path) -> str | None:
    with safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get(HEADER_KEY)


def _contiguous(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays in C order with the same shapes; NumPy would give one without axes an axis."""
    return {name: np.ascontiguousarray(values).reshape(values.shape) for name, values in arrays.items()}


def _is_large(values: Array) -> bool:
    """Return whether an array is stored in fewer bits."""
    return values.dtype == np.float32 and values.size >= SMALL and bool(np.isfinite(values).all())


def _rows(values: Array, grid_shape: tuple[int, ...]) -> Array:
    """Return an array of voxels as rows ``(rows, V)``, any other as one row ``(1, n)``."""
    voxels = math.prod(grid_shape)
    on_grid = values.shape[-1] == voxels or values.shape[-len(grid_shape) :] == grid_shape
    return values.reshape(-1, voxels) if on_grid else values.reshape(1, -1)


def _as_halves(rows: Array) -> tuple[Array, Array, Array]:
    """Return rows ``(rows, n)`` as 16-bit floats, with the scale and the offset of each row."""
    _, exponents = np.frexp(np.abs(rows).max(axis=1))
    scales = np.exp2(exponents - float(LARGEST_EXPONENT))
    return (rows / scales[:, None]).astype(np.float16), scales, np.zeros(len(rows))


def _as_integers(rows: Array, bits: VoxelBits) -> tuple[Array, Array, Array]:
    """Return rows ``(rows, n)`` as integers, with the scale and the offset of each row."""
    numbers = rows.astype(np.float64) if rows.size else np.zeros((len(rows), 1))
    low, high = numbers.min(axis=1), numbers.max(axis=1)
    scales = np.where(high > low, (high - low) / (2**bits - 1), 1)
    return np.rint((rows - low[:, None]) / scales[:, None]).astype(INTEGERS[bits]), scales, low


def _restored(stored: Array, storage: Storage, inside: Array) -> Array:
    scales, offsets = (np.array(values)[:, None] for values in (storage.scales, storage.offsets))
    rows: Array = (stored * scales + offsets).astype(np.float32)
    if storage.background is None:
        return rows.reshape(storage.shape)
    voxels = math.prod(storage.shape) // len(rows)
    if len(inside) != math.ceil(voxels / 8):
        raise ValueError(f"found {8 * len(inside)} bits of voxels inside, expected {voxels}")
    full = np.full((len(rows), voxels), storage.background, dtype=np.float32)
    full[:, np.unpackbits(inside, count=voxels).astype(bool)] = rows
    return full.reshape(storage.shape)
