"""Reading an image file to its end, and no further than its header claims."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io.file_types import N_START_BYTES
from anomaly.io.image_stream import decompressed, foreign_content_error, open_image
from anomaly.io.stored_file import StoredFile

CONTENT = bytes(range(256)) * 1000  # longer than the start that is read first


def read(stored: bytes, n_bytes: int, n_spare: int = 0) -> bytes:
    return decompressed(io.BytesIO(stored), len(stored)).read(n_bytes, n_spare)


@pytest.mark.parametrize("stored", [CONTENT, gzip.compress(CONTENT)], ids=["plain", "gzip"])
def test_the_whole_file_is_read(stored: bytes) -> None:
    assert read(stored, len(CONTENT)) == CONTENT
    assert read(stored, len(CONTENT) - 10, n_spare=10) == CONTENT
    assert decompressed(io.BytesIO(stored), len(stored)).start == CONTENT[:N_START_BYTES]


@pytest.mark.parametrize("stored", [CONTENT, gzip.compress(CONTENT)], ids=["plain", "gzip"])
@pytest.mark.parametrize("n_bytes", [10, len(CONTENT) - 1, len(CONTENT) + 1])
def test_another_length_than_claimed_is_refused(stored: bytes, n_bytes: int) -> None:
    with pytest.raises(ScanRefusedError) as caught:
        read(stored, n_bytes)
    assert f"{n_bytes:,} bytes" in caught.value.expected


def test_a_small_gzip_file_that_holds_more_than_claimed_is_not_decompressed_further() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    stream = decompressed(io.BytesIO(bomb), len(bomb))
    with pytest.raises(ScanRefusedError, match="at least 165,536 bytes"):
        stream.read(100_000)
    assert stream.rest.tell() < 200_000


@pytest.mark.parametrize("n_lost", [1, 8, 500])
def test_gzip_data_without_their_end_are_refused(tmp_path: Path, n_lost: int) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(CONTENT)[:-n_lost])
    with (
        pytest.raises(ScanRefusedError, match="end early"),
        open_image(StoredFile(tmp_path / "a.nii.gz")) as stream,
    ):
        stream.read(len(CONTENT))


def test_unknown_content_is_called_unknown() -> None:
    assert foreign_content_error(b"\x01\x02\x03" * 9, "a NIfTI file").found == "bytes of no known format"
