"""Read a file on disk, or a member of a zip, which is read in memory and never unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from anomaly.core.errors import ScanRefusedError

MAX_FILE_BYTES = 4 * 1024**3
MAX_SCAN_BYTES = 8 * 1024**3


@dataclass(frozen=True, order=True)
class StoredFile:
    """A file on disk or in a zip.

    Parameters
    ----------
    path
        The file, or the zip that contains it.
    member
        Name inside the zip; ``""`` for a file on disk. It is never used as a path on disk.
    """

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """Name of the file, without folders."""
        return (self.member or self.path.name).replace("\\", "/").rsplit("/", 1)[-1]

    @property
    def folder(self) -> str:
        """The folder that contains the file; for a member of a zip, the path of the zip and the folder in it."""
        return f"{self.path}/{self.member}".rpartition("/")[0] if self.member else str(self.path.parent)

    def cache_key(self) -> list[str | int]:
        """Return values that change when the file is replaced: path, member, size and modification time."""
        stat = self.path.stat()
        return [str(self.path.resolve()), self.member, stat.st_size, stat.st_mtime_ns]


def read_bytes(file: StoredFile) -> bytes:
    """Read the content of one file."""
    return next(content for _, content in read_all([file]))


def read_all(files: Iterable[StoredFile]) -> Iterator[tuple[StoredFile, bytes]]:
    """Yield files with their content, one at a time; each zip is opened once.

    Raises
    ------
    ScanRefusedError
        If a file cannot be read, or the files together are larger than a scan can be.
    """
    total = 0
    with ExitStack() as stack:
        archives: dict[Path, zipfile.ZipFile] = {}
        for file in files:
            try:
                if file.member and file.path not in archives:
                    archives[file.path] = stack.enter_context(zipfile.ZipFile(file.path))
                content = _content(file, archives)
            except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, KeyError, EOFError) as error:
                raise unreadable_error(f"a file that cannot be read ({type(error).__name__})") from error
            total += len(content)
            if total > MAX_SCAN_BYTES:
                raise too_large_error(total)
            yield file, content


def _content(file: StoredFile, archives: dict[Path, zipfile.ZipFile]) -> bytes:
    if not file.member:
        if file.path.stat().st_size > MAX_FILE_BYTES:
            raise too_large_error(file.path.stat().st_size)
        return file.path.read_bytes()
    with archives[file.path].open(file.member) as stream:
        content = stream.read(MAX_FILE_BYTES + 1)  # the size in the index of a zip may be wrong
    if len(content) > MAX_FILE_BYTES:
        raise too_large_error(len(content))
    return content


def unreadable_error(found: str) -> ScanRefusedError:
    """Return the error of a file that cannot be read."""
    return ScanRefusedError("unreadable", found, "a complete NIfTI file or DICOM series",
                            "copy or export the scan again")  # fmt: skip


def too_large_error(n_bytes: int) -> ScanRefusedError:
    """Return the error of a file that is too large to be a scan."""
    return ScanRefusedError("too_large", f"{n_bytes / 1024**3:.1f} GiB or more of data",
                            f"at most {MAX_SCAN_BYTES / 1024**3:.0f} GiB for one scan",
                            "check that the file is one 3D scan")  # fmt: skip
