"""Read a file on disk, or a member of a zip, which is read in memory and never unpacked."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from anomaly.core.errors import ScanRefusedError

MAX_FILE_BYTES = 4 * 1024**3
MAX_SCAN_BYTES = 8 * 1024**3
MAX_DEFLATE_RATIO = 1032  # no deflate stream is longer, decompressed, than this many times its size

READ_ERRORS = (
    OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, ValueError,
)  # fmt: skip
TRANSIENT_ERRNOS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE,
        errno.ENFILE,
    }
)  # fmt: skip
_CHUNK_BYTES = 1 << 22
_N_OVERRUN_BYTES = 1 << 16  # read beyond the expected end, to say how long a file is or meet its wrong checksum
_COPY_REMEDY = "copy or export the scan again"
_SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


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

    def sibling(self, name: str) -> StoredFile:
        """Return the file of another name in the same folder."""
        if not self.member:
            return StoredFile(self.path.with_name(name))
        return StoredFile(self.path, self.member[: len(self.member) - len(self.name)] + name)

    def exists(self) -> bool:
        """Return whether there is such a file."""
        if not self.member:
            return os.path.lexists(self.path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self.member in archive.namelist()
        except READ_ERRORS:
            return False

    def identity(self) -> tuple[str, str]:
        """Return what is equal for two names of the same file, such as a file and a link to it."""
        try:
            return os.path.realpath(self.path), self.member
        except (OSError, ValueError):  # a path that no file can have
            return str(self.path), self.member

    def cache_key(self) -> list[str | int]:
        """Return values that change when the file is replaced: path, member, size and modification time."""
        found = self.path.stat()
        return [*self.identity(), found.st_size, found.st_mtime_ns]


@contextmanager
def open_file(file: StoredFile, archive: zipfile.ZipFile | None = None) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file; give a stream of its bytes and their number. Only regular files are opened.

    Parameters
    ----------
    file
        The file to open.
    archive
        The zip that contains it, if that is open already.

    Raises
    ------
    ScanRefusedError
        If the file cannot be opened, or its bytes cannot be read.
    """
    with reading(), ExitStack() as stack:
        check_regular(file.path)
        if not file.member:
            stream = stack.enter_context(file.path.open("rb"))
            yield stream, os.fstat(stream.fileno()).st_size
            return
        archive = archive or stack.enter_context(zipfile.ZipFile(file.path))
        info = archive.getinfo(file.member)
        _check_member(info)
        yield stack.enter_context(archive.open(info)), info.file_size


@contextmanager
def reading() -> Iterator[None]:
    """Turn the errors of reading a file into ScanRefusedError."""
    try:
        yield
    except READ_ERRORS as error:
        raise _reading_error(error) from error


def is_transient(error: BaseException) -> bool:
    """Return whether the same file may be readable at the next try."""
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS


def read_stream(stream: IO[bytes], n_bytes: int, n_spare: int = 0, start: bytes = b"") -> bytes:
    """Read a stream to its end, which must come after a number of bytes.

    Memory is taken as the bytes arrive, whatever the number says.

    Parameters
    ----------
    stream
        Its checksum, if it has one, is checked by reading to the end.
    n_bytes
        How many bytes must come.
    n_spare
        How many more may come.
    start
        The first bytes, if they were read before.

    Raises
    ------
    ScanRefusedError
        If fewer or more come.
    """
    content = bytearray(start)
    n_most = n_bytes + n_spare + _N_OVERRUN_BYTES
    while chunk := stream.read(max(min(_CHUNK_BYTES, n_most - len(content)), 0)):
        content += chunk
    if n_bytes <= len(content) <= n_bytes + n_spare:
        return bytes(content)
    raise length_error(f"{len(content):,}" if len(content) < n_most else f"at least {n_most:,}", n_bytes)


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
            if file.member and file.path not in archives:
                with reading():
                    archives[file.path] = stack.enter_context(zipfile.ZipFile(file.path))
            with open_file(file, archives.get(file.path)) as (stream, n_bytes):
                total += n_bytes
                if n_bytes > MAX_FILE_BYTES or total > MAX_SCAN_BYTES:
                    raise too_large_error(max(n_bytes, total))
                content = read_stream(stream, n_bytes)
            yield file, content


def check_regular(path: Path) -> None:
    """Raise ScanRefusedError if a path is not that of a file with content: a pipe, a device, a dangling link."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        raise _missing_error(path, error) from error
    if kind != stat.S_IFREG:
        raise unreadable_error(_SPECIAL_FILES.get(kind, "a special file"), "a file", "give the file itself")


def _missing_error(path: Path, error: OSError) -> ScanRefusedError:
    if error.errno == errno.ELOOP:
        return unreadable_error("a link that leads back to itself", "a file", "give the file itself")
    if is_transient(error) or not path.is_symlink():
        return _reading_error(error)
    if "annex/objects" in os.readlink(path):  # noqa: PTH115 - its text, which need not be a path
        return unreadable_error("a git-annex link whose content is not here", "the content of the file",
                                "run `git annex get` (or `datalad get`) on it")  # fmt: skip
    return unreadable_error("a link to a file that does not exist", "a file", "give the file itself")


def _check_member(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise unreadable_error("an encrypted file in a zip", "a file without password",
                               "unpack the zip with its password and give the folder")  # fmt: skip
    if info.file_size > MAX_FILE_BYTES:
        raise too_large_error(info.file_size)
    most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MAX_DEFLATE_RATIO}.get(info.compress_type)
    if most is not None:
        check_claim(info.file_size, info.compress_size * most)


def check_claim(n_claimed: int, n_most: int) -> None:
    """Raise ScanRefusedError if a header claims more bytes than its file can hold."""
    if n_claimed > n_most:
        raise length_error(f"at most {n_most:,}", n_claimed)


def _describe_error(error: BaseException) -> str:
    """Return what went wrong, without the text of the error, which may name a path and so a patient."""
    text = str(error)
    if isinstance(error, PermissionError):
        return "a file that may not be read (no permission)"
    if isinstance(error, FileNotFoundError | KeyError):
        return "no file: it was there and is gone"
    if "CRC" in text or "Incorrect length" in text or "Bad CRC" in text:
        return "a damaged file: its checksum is wrong"
    if "Not a gzipped file" in text:
        return "bytes after the end of the gzip data"
    if isinstance(error, EOFError):
        return "compressed data that end early"
    if isinstance(error, zlib.error | gzip.BadGzipFile):
        return "damaged compressed data"
    if isinstance(error, NotImplementedError):
        return "a zip whose compression is not supported"
    return f"a file that cannot be read ({type(error).__name__})"


def _reading_error(error: BaseException) -> ScanRefusedError:
    return unreadable_error(_describe_error(error), is_transient=is_transient(error))


def length_error(found: str, n_expected: int) -> ScanRefusedError:
    """Return the error of a file that is longer or shorter than its header says."""
    return unreadable_error(f"{found} bytes of image", f"{n_expected:,} bytes, as the header says", _COPY_REMEDY)


def unreadable_error(
    found: str,
    expected: str = "a complete image file or DICOM series",
    remedy: str = _COPY_REMEDY,
    is_transient: bool = False,
) -> ScanRefusedError:
    """Return the error of a file that cannot be read."""
    return ScanRefusedError("unreadable", found, expected, remedy, is_transient)


def too_large_error(n_bytes: int) -> ScanRefusedError:
    """Return the error of a file that is too large to be a scan."""
    return ScanRefusedError("too_large", f"{n_bytes / 1024**3:.1f} GiB or more of data",
                            f"at most {MAX_SCAN_BYTES / 1024**3:.0f} GiB for one scan",
                            "check that the file is one 3D scan")  # fmt: skip
