"""Write files atomically, read and write JSON, and hash contents.

NumPy is imported inside the functions that need it, because the command line imports this module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success, remove it on failure.

    The temporary name has the suffix of ``path``, because libraries choose the file format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Raises
    ------
    ValueError
        If the value contains NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=_to_json_type, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read the value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_voxels(voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> str:
    """Return the SHA-256 of voxels and affine, as 64 hex digits.

    It does not depend on the file: the same scan compressed differently, renamed, or converted from DICOM to NIfTI
    has the same hash.
    """
    import numpy as np

    digest = hashlib.sha256()
    digest.update(repr(voxels.shape).encode())
    digest.update(np.ascontiguousarray(voxels, dtype=np.float32).tobytes())
    digest.update((np.round(np.asarray(affine, dtype=np.float64), 3) + 0.0).tobytes())  # + 0.0: no negative zero
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Return a value as JSON on one line of ASCII, with sorted keys and without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_to_json_type)


def _to_json_type(value: Any) -> Any:
    """Convert paths, NumPy scalars and arrays to what JSON can express."""
    if isinstance(value, Path):
        return str(value)
    import numpy as np

    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
