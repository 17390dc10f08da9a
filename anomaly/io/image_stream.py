"""Read an image file, compressed by gzip or not, to its end and no further than its header claims.

Whether a file is compressed is told by its first bytes, not by its name. A gzip file may consist of several
members, as block compression writes it, and may be padded with zeros. Its checksums are checked. Other bytes after
its end are an error.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

from anomaly.core.errors import ScanRefusedError
from anomaly.io.file_types import N_START_BYTES, describe_content
from anomaly.io.stored_file import (
    MAX_DEFLATE_RATIO,
    StoredFile,
    check_claim,
    length_error,
    open_file,
    read_stream,
    unreadable_error,
)

GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class ImageStream:
    """The decompressed bytes of one image file.

    Parameters
    ----------
    start
        The first bytes, at most :data:`N_START_BYTES`.
    rest
        The bytes that follow.
    n_stored
        Number of bytes of the file as it is stored.
    is_compressed
        Whether these are compressed.
    """

    start: bytes
    rest: IO[bytes]
    n_stored: int
    is_compressed: bool

    def read(self, n_bytes: int, n_spare: int = 0) -> bytes:
        """Read the whole file.

        Parameters
        ----------
        n_bytes
            Its length according to its header.
        n_spare
            How many more bytes may follow.

        Raises
        ------
        ScanRefusedError
            If the file is shorter or longer, or damaged. The length is compared before memory is taken.
        """
        if self.is_compressed:
            check_claim(n_bytes, self.n_stored * MAX_DEFLATE_RATIO)
        elif not n_bytes <= self.n_stored <= n_bytes + n_spare:
            raise length_error(f"{self.n_stored:,}", n_bytes)
        return read_stream(self.rest, n_bytes, n_spare, self.start)


@contextmanager
def open_image(file: StoredFile) -> Iterator[ImageStream]:
    """Open an image file.

    Raises
    ------
    ScanRefusedError
        If it cannot be opened, or its bytes cannot be read.
    """
    with open_file(file) as (stored, n_stored):
        yield decompressed(stored, n_stored)


def decompressed(stored: IO[bytes], n_stored: int) -> ImageStream:
    """Return the decompressed bytes of a stream that can be read again from its beginning."""
    is_compressed = stored.read(2) == GZIP_MAGIC
    stored.seek(0)
    stream = cast("IO[bytes]", gzip.GzipFile(fileobj=stored)) if is_compressed else stored
    return ImageStream(read_up_to(stream, N_START_BYTES), stream, n_stored, is_compressed)


def read_up_to(stream: IO[bytes], n_bytes: int) -> bytes:
    """Read a number of bytes, or fewer if the stream ends before."""
    content = io.BytesIO()
    while chunk := stream.read(n_bytes - content.tell()):
        content.write(chunk)
    return content.getvalue()


def foreign_content_error(start: bytes, expected: str) -> ScanRefusedError:
    """Return the error of a file that is not what its name says, and say what it is instead, if that is known.

    Parameters
    ----------
    start
        Its first bytes.
    expected
        What its name says, one clause.
    """
    content = describe_content(start)
    if content is None:
        return unreadable_error("bytes of no known format", expected)
    return unreadable_error(content.description, expected, content.remedy)
