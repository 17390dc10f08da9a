"""Seeded mutations of files: what a bad disk, transfer, converter or anonymiser may do to them.

Every mutation changes one file in place and returns a description. All random choices come from the generator that
is passed in, so a mutant can be made again from its seed.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation

Rng = np.random.Generator

LONGEST_RANGE = 64  # bytes that one mutation deletes, zeroes or repeats
GARBAGE_VALUES = ("", "-1", "0", "1e30", "NaN", "2000,0", "\\\\", "x" * 80, "\x00", "٣")


class Mutation(NamedTuple):
    """What was done to a file.

    Parameters
    ----------
    description
        The kind of mutation and where it was made.
    offset
        First changed byte of the file; None where a header value was changed by name.
    field
        Name of the changed header field or DICOM element; ``""`` for bytes.
    """

    description: str
    offset: int | None = None
    field: str = ""


def flip_bit(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Flip one bit."""
    at = int(rng.integers(len(content)))
    return content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :], at


def set_byte(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Replace one byte by a random one."""
    at = int(rng.integers(len(content)))
    return content[:at] + rng.bytes(1) + content[at + 1 :], at


def cut_end(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Cut the file at a random place."""
    at = int(rng.integers(len(content)))
    return content[:at], at


def append_bytes(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Append random bytes."""
    return content + rng.bytes(int(rng.integers(1, LONGEST_RANGE))), len(content)


def delete_range(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Delete a range of bytes."""
    start, end = _range(content, rng)
    return content[:start] + content[end:], start


def zero_range(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Set a range of bytes to zero."""
    start, end = _range(content, rng)
    return content[:start] + bytes(end - start) + content[end:], start


def zero_tail(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Set all bytes from a random place on to zero, as after a power failure."""
    at = int(rng.integers(len(content)))
    return content[:at] + bytes(len(content) - at), at


def repeat_range(content: bytes, rng: Rng) -> tuple[bytes, int]:
    """Repeat a range of bytes."""
    start, end = _range(content, rng)
    return content[:end] + content[start:], end


BYTE_MUTATIONS: tuple[Callable[[bytes, Rng], tuple[bytes, int]], ...] = (
    flip_bit, set_byte, cut_end, append_bytes, delete_range, zero_range, zero_tail, repeat_range,
)  # fmt: skip


def mutate_bytes(path: Path, rng: Rng) -> Mutation:
    """Change bytes of a file, whatever its format."""
    mutate = BYTE_MUTATIONS[int(rng.integers(len(BYTE_MUTATIONS)))]
    content, offset = mutate(path.read_bytes(), rng)
    path.write_bytes(content)
    return Mutation(f"{mutate.__name__} at byte {offset} of {path.name}", offset)


def mutate_nifti_header(path: Path, rng: Rng) -> Mutation:
    """Set one number of a NIfTI-1 header to another value, often an extreme one; compresses again for ``.gz``."""
    content = path.read_bytes()
    compressed = content[:2] == b"\x1f\x8b"
    raw = bytearray(gzip.decompress(content) if compressed else content)
    header = np.frombuffer(bytes(raw[:348]), dtype=nib.nifti1.header_dtype).copy()
    numeric = [name for name in header.dtype.names or () if header.dtype[name].base.kind in "iuf"]
    field = numeric[int(rng.integers(len(numeric)))]
    values = header[field].reshape(-1)
    index = int(rng.integers(values.size))
    values[index] = _extreme(header.dtype[field].base, values[index], rng)
    raw[:348] = header.tobytes()
    path.write_bytes(gzip.compress(bytes(raw), mtime=0) if compressed else bytes(raw))
    return Mutation(f"{field}[{index}] = {values[index]} in {path.name}", field=field)


def mutate_dicom_element(path: Path, rng: Rng) -> Mutation:
    """Delete one element of a DICOM file, or give it another value."""
    with disable_value_validation():
        ds = dcmread(path)
        elements = [element for element in ds if element.keyword and element.VR != "SQ"]
        element = elements[int(rng.integers(len(elements)))]
        action = ("delete", "garbage", "double")[int(rng.integers(3))]
        if action == "delete":
            delattr(ds, element.keyword)
        elif action == "double":
            _double(ds, element.keyword)
        else:
            _set_garbage(ds, element.keyword, rng)
        stream = io.BytesIO()
        try:
            ds.save_as(stream)
        except Exception as error:  # noqa: BLE001 - a value that this element cannot hold is not a file that exists
            return Mutation(f"{element.keyword}: not written ({type(error).__name__})", field=element.keyword)
    path.write_bytes(stream.getvalue())
    return Mutation(f"{action} {element.keyword} in {path.name}", field=element.keyword)


def _range(content: bytes, rng: Rng) -> tuple[int, int]:
    start = int(rng.integers(len(content)))
    return start, min(len(content), start + int(rng.integers(1, LONGEST_RANGE)))


def _extreme(dtype: np.dtype[np.generic], value: np.generic, rng: Rng) -> np.generic:
    if dtype.kind == "f":
        choices = [0.0, -1.0, 1.0, np.nan, np.inf, 1e-30, 1e30, -float(value), 2 * float(value), rng.normal() * 100]
        with np.errstate(over="ignore"):
            return dtype.type(choices[int(rng.integers(len(choices)))])
    limits = np.iinfo(dtype)
    integers = [0, 1, limits.max, limits.min, int(value) + 1, int(value) * 2, int(rng.integers(0, 300))]
    chosen = min(max(integers[int(rng.integers(len(integers)))], limits.min), limits.max)
    return dtype.type(chosen)


def _double(ds: Dataset, keyword: str) -> None:
    """Double a number; leave other values as they are."""
    value = getattr(ds, keyword)
    if isinstance(value, int | float):
        setattr(ds, keyword, type(value)(2 * value))


def _set_garbage(ds: Dataset, keyword: str, rng: Rng) -> None:
    text = GARBAGE_VALUES[int(rng.integers(len(GARBAGE_VALUES)))]
    element = ds[keyword]
    if element.VR in {"US", "SS", "UL", "SL"}:
        element.value = int(rng.integers(0, 1 << 15))
    elif element.VR in {"OW", "OB"}:
        element.value = rng.bytes(len(element.value))
    else:
        ds.add_new(element.tag, "LO", text)
        ds[keyword].VR = element.VR
