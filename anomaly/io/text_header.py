"""Images with a header of text: what NRRD and MetaImage have in common.

The header says how the voxels are stored; they follow it, or are in a file beside it. ITK takes the memory that a
header claims before it looks at the file, and does not read zips, so the voxels are read here.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Modality, Volume
from anomaly.io.file_types import CONVERT_REMEDY, N_START_BYTES, image_stem
from anomaly.io.image_stream import GZIP_MAGIC, decompressed, foreign_content_error, open_image
from anomaly.io.stored_file import (
    MAX_DEFLATE_RATIO,
    MAX_FILE_BYTES,
    StoredFile,
    check_claim,
    length_error,
    open_file,
    read_stream,
    too_large_error,
    unreadable_error,
)
from anomaly.io.volume_checks import check_shape, make_volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
AXES_TO_RAS = {"RAS": np.eye(3), "LPS": _LPS_TO_RAS, "LAS": np.diag([-1.0, 1.0, 1.0])}


@dataclass(frozen=True)
class TextHeader:
    """How the voxels of an image are stored.

    Parameters
    ----------
    shape
        Number of voxels ``(I, J, K)``; I changes fastest in the file.
    dtype
        Type of the stored values, with its byte order.
    affine
        ``(4, 4)`` voxel index → RAS+ millimetres.
    is_compressed
        Whether the voxels are compressed by gzip or zlib.
    data_file
        Name of the file of the voxels; ``""`` if they follow the header.
    n_skipped
        Bytes before the voxels in their own file; -1 if the voxels are the last bytes of it.
    n_compressed
        Number of bytes of the compressed voxels, if the header tells it.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    affine: AffineArray
    is_compressed: bool = False
    data_file: str = ""
    n_skipped: int = 0
    n_compressed: int | None = None

    @property
    def n_voxel_bytes(self) -> int:
        """Number of bytes of the voxels, decompressed."""
        i, j, k = self.shape
        return i * j * k * self.dtype.itemsize


@dataclass(frozen=True)
class TextFormat:
    """One format of images with a header of text.

    Parameters
    ----------
    name
        With its article, for messages.
    magic
        Pattern of the first bytes.
    end
        Pattern of the end of the header.
    parse
        Text of the header → header. It may raise ValueError or KeyError for one that is wrong.
    """

    name: str
    magic: re.Pattern[bytes]
    end: re.Pattern[bytes]
    parse: Callable[[str], TextHeader]


def read_text_image(file: StoredFile, text_format: TextFormat, scan_id: str | None, modality: Modality) -> Volume:
    """Read one scan.

    Raises
    ------
    ScanRefusedError
        If the file is damaged, longer or shorter than its header says, not one 3D volume of scalars, not finite or
        constant, or its geometry is missing or implausible.
    """
    header, n_header_bytes = _read_header(file, text_format)
    voxels = _read_attached(file, header, n_header_bytes) if not header.data_file else _read_detached(file, header)
    return make_volume(voxels, header.affine, scan_id or image_stem(file.name), modality)


def data_file_of(file: StoredFile, text_format: TextFormat) -> StoredFile | None:
    """Return the file of the voxels of an image; None if it is the image itself, or cannot be told."""
    try:
        header, _ = _read_header(file, text_format)
    except ScanRefusedError:
        return None
    return file.sibling(header.data_file) if header.data_file else None


def data_file_name(text: str) -> str:
    """Return the name of the file of the voxels that a header gives.

    Raises
    ------
    ScanRefusedError
        If it is a list or a pattern of files, or lies in another folder, where nothing is opened.
    """
    if re.match(r"LIST\b", text) or "%" in text:
        raise unreadable_error("voxels in several files", "voxels in one file", CONVERT_REMEDY)
    if re.search(r"[/\\]", text.removeprefix("./")) or text in {"", ".", ".."}:
        raise unreadable_error("voxels in another folder than their header", "both files in one folder",
                               "copy both files into one folder and correct the name in the header")  # fmt: skip
    return text.removeprefix("./")


def make_affine(directions: npt.NDArray[np.float64], origin: list[float], axes: str) -> AffineArray:
    """Return voxel index → RAS+ mm from the steps of I, J, K (rows of ``directions``) in some anatomical axes."""
    affine = np.eye(4)
    affine[:3, :3] = AXES_TO_RAS[axes] @ directions.T
    affine[:3, 3] = AXES_TO_RAS[axes] @ np.array(origin)
    return affine


def parse_numbers(text: str, n_expected: int) -> list[float]:
    """Return the numbers of a text; raise ValueError if one is not finite, or there are more or fewer."""
    numbers = [float(part) for part in text.split()]
    if len(numbers) != n_expected or not np.isfinite(numbers).all():
        raise ValueError(f"{text!r}, expected {n_expected} numbers")
    return numbers


def _read_header(file: StoredFile, text_format: TextFormat) -> tuple[TextHeader, int]:
    with open_image(file) as stream:
        start = stream.start
    if not text_format.magic.match(start):
        raise foreign_content_error(start, text_format.name)
    end = text_format.end.search(start)
    if end is None:
        raise unreadable_error(f"{text_format.name} whose header does not end within {N_START_BYTES:,} bytes")
    text = start[: end.end()].decode("utf-8", "replace").replace("\r\n", "\n")
    try:
        header = text_format.parse(text)
    except (ValueError, KeyError, IndexError) as error:
        raise unreadable_error(f"{text_format.name} whose header is wrong or incomplete ({error})") from error
    check_shape(header.shape, header.dtype.itemsize)
    return header, end.end()


def _read_attached(file: StoredFile, header: TextHeader, n_header_bytes: int) -> FloatArray:
    with open_image(file) as stream:
        if not header.is_compressed:
            content = stream.read(n_header_bytes + header.n_voxel_bytes)
            return _to_voxels(content[n_header_bytes:], header)
        check_claim(header.n_voxel_bytes, stream.n_stored * MAX_DEFLATE_RATIO)
        packed = read_stream(stream.rest, n_header_bytes, stream.n_stored, stream.start)[n_header_bytes:]
        return _to_voxels(_decompress(packed, header), header)


def _read_detached(file: StoredFile, header: TextHeader) -> FloatArray:
    with open_file(file.sibling(header.data_file)) as (stream, n_bytes):
        if n_bytes > MAX_FILE_BYTES:
            raise too_large_error(n_bytes)
        if (
            not header.is_compressed
            and header.n_skipped >= 0
            and n_bytes != header.n_skipped + header.n_voxel_bytes
        ):
            raise length_error(f"{n_bytes:,}", header.n_skipped + header.n_voxel_bytes)
        if not header.is_compressed and n_bytes < header.n_voxel_bytes:
            raise length_error(f"{n_bytes:,}", header.n_voxel_bytes)
        content = read_stream(stream, n_bytes)
        if header.n_skipped < 0:
            return _to_voxels(content[n_bytes - header.n_voxel_bytes :], header)
        content = content[header.n_skipped :]
        return _to_voxels(_decompress(content, header) if header.is_compressed else content, header)


def _decompress(packed: bytes, header: TextHeader) -> bytes:
    if header.n_compressed is not None and len(packed) != header.n_compressed:
        raise length_error(f"{len(packed):,} compressed", header.n_compressed)
    check_claim(header.n_voxel_bytes, len(packed) * MAX_DEFLATE_RATIO)
    if packed.startswith(GZIP_MAGIC):
        return decompressed(io.BytesIO(packed), len(packed)).read(header.n_voxel_bytes)
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(packed, header.n_voxel_bytes + 1)
    if len(content) != header.n_voxel_bytes:
        raise length_error(f"{len(content):,}", header.n_voxel_bytes)
    if not unpacker.eof:
        raise EOFError
    if unpacker.unused_data:
        raise unreadable_error("bytes after the end of the compressed voxels")
    return content


def _to_voxels(content: bytes, header: TextHeader) -> FloatArray:
    return np.frombuffer(content, header.dtype).reshape(header.shape, order="F").astype(np.float32)
