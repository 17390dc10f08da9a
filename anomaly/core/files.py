"""Write files atomically, read and write JSON, and hash contents.

A file that was written is on the disk, so that it survives a power failure. A file that cannot be written is an
:class:`~anomaly.core.errors.OutputError`, which ends a batch: every later scan would fail in the same way.

NumPy is imported inside the functions that need it, because the command line imports this module.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.core.errors import DamagedFileError, OutputError

if TYPE_CHECKING:
    import numpy as np

OLD_SECONDS = 24 * 3600.0
"""A temporary file that nobody wrote to for this long was left by a process that ended."""

STORAGE_ERRORS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
        errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.EMFILE, errno.ENFILE,
    }
)  # fmt: skip
"""Errors of the disk, of permissions and of the process; a name that is too long concerns one file only."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_SAME_NAME = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR})
_TEMPORARY = re.compile(r"\.(?:(?P<host>[0-9a-f]{6})-)?(?P<pid>\d+)\.partial\..+")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success, remove it on failure.

    The temporary name has the suffix of ``path``, because libraries choose the file format by it. The file gets the
    permissions that the umask gives, whatever the library that writes it gives.

    Raises
    ------
    OutputError
        The folder or the file cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{_host()}-{os.getpid()}.partial.{path.name}")
    try:
        mode = _create(temporary)
        yield temporary
        _sync_file(temporary, mode)
        temporary.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        if (storage := _storage_error(error, temporary)) is not None:
            raise output_error(path, storage) from error
        raise
    finally:
        with suppress(OSError):  # the error of the block says more
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, where they do not exist.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the error for a file or folder that cannot be written, with what to do about it."""
    if error.errno in _FULL:
        remedy = "free space on that disk, then run the same command again: it continues"
    elif error.errno in _SAME_NAME:
        remedy = "a file is where a folder should be, or the reverse; move it away or give another output folder"
    else:
        remedy = "make the folder writable or give another one, then run the same command again: it continues"
    found = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(f"cannot write {path}: {found}; {remedy}")


def remove_orphans(folder: Path) -> None:
    """Remove the temporary files below a folder whose process has ended.

    Those of a process on another computer are removed when they are old.
    """
    for path in folder.rglob(".*.partial.*"):
        if (name := _TEMPORARY.fullmatch(path.name)) and _is_orphan(path, name["host"], int(name["pid"])):
            with suppress(OSError):  # it may belong to another user
                path.unlink()


def _is_orphan(path: Path, host: str | None, pid: int) -> bool:
    try:
        is_old = time.time() - path.stat().st_mtime > OLD_SECONDS
    except FileNotFoundError:  # its process has just finished it
        return False
    return is_old or (host in {None, _host()} and not is_running(pid))


def is_running(pid: int) -> bool:
    """Return whether a process of this computer exists."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


@cache
def _host() -> str:
    """Return six hex digits for this computer: a temporary name must not be much longer than the final one."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _create(path: Path) -> int:
    """Make an empty file, and return the permissions that the umask gives it."""
    with path.open("wb") as stream:
        return os.fstat(stream.fileno()).st_mode


def _sync_file(path: Path, mode: int) -> None:
    """Give a file its permissions, and wait until it is on the disk."""
    if path.stat().st_mode != mode:
        path.chmod(stat.S_IMODE(mode))
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can tell."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def _storage_error(error: Exception, temporary: Path) -> OSError | None:
    """Return why a file could not be written, None if the error has another cause.

    Some libraries replace the error of the operating system by one of their own, or leave out its number. Writing a
    little more to the file that they left asks for it again.
    """
    if isinstance(error, OSError) and error.errno is not None:
        named = [Path(name).parent for name in (error.filename, error.filename2) if name is not None]
        concerns_output = error.errno in _FULL or not named or temporary.parent in named
        return error if concerns_output and error.errno in STORAGE_ERRORS else None
    if not temporary.exists():
        return None
    try:
        with temporary.open("ab") as stream:
            stream.write(bytes(2**16))
    except OSError as found:
        return found
    return None


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


def read_json(path: Path, remedy: str = "restore the file from a copy") -> dict[str, Any]:
    """Read the named values in a JSON file.

    Parameters
    ----------
    remedy
        What to do if the file is damaged, for the message.

    Raises
    ------
    DamagedFileError
        The file is empty, cut or otherwise not what was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: {_damage(path, error)}; {remedy}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} is damaged: found {str(value)[:20]}, expected named values; {remedy}")
    return value


def read_json_if_whole(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that can be made again; None if it is missing or damaged."""
    try:
        return read_json(path)
    except (FileNotFoundError, DamagedFileError):
        return None


def _damage(path: Path, error: ValueError) -> str:
    return "it is empty" if path.stat().st_size == 0 else f"it is not JSON ({error})"


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
