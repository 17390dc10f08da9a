"""A file where it lies: on disk, or inside a zip that is read in memory and never unpacked."""

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
    """One file.

    Parameters
    ----------
    path
        The file, or the zip that holds it.
    member
        Its name inside the zip; ``""`` for a file on disk. Never used as a path on disk.
    """

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return (self.member or self.path.name).replace("\\", "/").rsplit("/", 1)[-1]

    @property
    def folder(self) -> str:
        """The folder it lies in, inside the zip where it is in one."""
        return f"{self.path}/{self.member}".rpartition("/")[0] if self.member else str(self.path.parent)

    def identity(self) -> list[str | int]:
        """Return what changes when the file is replaced: name, size, time of change."""
        stat = self.path.stat()
        return [str(self.path.resolve()), self.member, stat.st_size, stat.st_mtime_ns]


def read_bytes(file: StoredFile) -> bytes:
    """Return the content of one file."""
    return next(content for _, content in read_all([file]))


def read_all(files: Iterable[StoredFile]) -> Iterator[tuple[StoredFile, bytes]]:
    """Yield files with their content, one in memory at a time; each zip is opened once.

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
                raise unreadable(f"a file that cannot be read ({type(error).__name__})") from error
            total += len(content)
            if total > MAX_SCAN_BYTES:
                raise too_large(total)
            yield file, content


def _content(file: StoredFile, archives: dict[Path, zipfile.ZipFile]) -> bytes:
    if not file.member:
        if file.path.stat().st_size > MAX_FILE_BYTES:
            raise too_large(file.path.stat().st_size)
        return file.path.read_bytes()
    with archives[file.path].open(file.member) as stream:
        content = stream.read(MAX_FILE_BYTES + 1)  # the size in a zip's index may lie
    if len(content) > MAX_FILE_BYTES:
        raise too_large(len(content))
    return content


def unreadable(found: str) -> ScanRefusedError:
    """Return the refusal of a file that cannot be read."""
    return ScanRefusedError("unreadable", found, "a complete NIfTI file or DICOM series",
                            "copy or export the scan again")  # fmt: skip


def too_large(n_bytes: int) -> ScanRefusedError:
    """Return the refusal of a scan too large to be one."""
    return ScanRefusedError("too_large", f"{n_bytes / 1024**3:.1f} GiB or more of data",
                            f"at most {MAX_SCAN_BYTES / 1024**3:.0f} GiB for one scan",
                            "check that the file is one 3D scan")  # fmt: skip
