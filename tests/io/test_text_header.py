"""Images with a header of text: where their voxels are, and how many bytes they may be."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io.image_file import read_image
from anomaly.io.metaimage import METAIMAGE
from anomaly.io.stored_file import StoredFile
from anomaly.io.text_header import data_file_name, data_file_of, make_affine, parse_numbers
from tests.io.image_factory import change, data_file, rotated, voxels, write_by_itk


def refusal(path: Path) -> ScanRefusedError:
    with pytest.raises(ScanRefusedError) as caught:
        read_image(StoredFile(path))
    return caught.value


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd", "scan.mhd", "scan.nhdr"])
def test_a_claim_that_the_file_cannot_hold_takes_no_memory(tmp_path: Path, name: str, compress: bool) -> None:
    path = write_by_itk(tmp_path / name, voxels(), rotated(), compress)
    change(path, b"9 8 7", b"999 800 700")
    tracemalloc.start()
    error = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "unreadable"
    assert error.expected.startswith("1,118,88")
    assert peak < 1 << 21


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd", "scan.mhd", "scan.nhdr"])
def test_bytes_after_the_voxels_are_refused(tmp_path: Path, name: str, compress: bool) -> None:
    path = write_by_itk(tmp_path / name, voxels(), rotated(), compress)
    stored = data_file(path)
    stored.write_bytes(stored.read_bytes() + b"more")
    assert refusal(path).code == "unreadable"


@pytest.mark.parametrize("name", ["scan.mhd", "scan.nhdr"])
def test_a_missing_data_file_is_refused(tmp_path: Path, name: str) -> None:
    path = write_by_itk(tmp_path / name, voxels(), rotated())
    (tmp_path / "scan.raw").unlink()
    assert refusal(path).code == "unreadable"


@pytest.mark.parametrize("n_skipped", [b"5", b"-1"])
def test_bytes_before_the_voxels_are_skipped_where_the_header_says_so(tmp_path: Path, n_skipped: bytes) -> None:
    path = write_by_itk(tmp_path / "scan.mhd", voxels(), rotated())
    change(path, b"ElementDataFile", b"HeaderSize = " + n_skipped + b"\nElementDataFile")
    (tmp_path / "scan.raw").write_bytes(b"12345" + (tmp_path / "scan.raw").read_bytes())
    np.testing.assert_array_equal(read_image(StoredFile(path)).voxels, voxels())


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.raw", "b/a.raw", "c:\\a.raw", "LIST 2", "a%03d.raw", ".."])
def test_voxels_elsewhere_are_not_opened(name: str) -> None:
    with pytest.raises(ScanRefusedError):
        data_file_name(name)


def test_a_data_file_beside_the_header_is_named(tmp_path: Path) -> None:
    assert data_file_name("./a.raw") == "a.raw"
    file = StoredFile(write_by_itk(tmp_path / "scan.mhd", voxels(), rotated()))
    assert data_file_of(file, METAIMAGE) == StoredFile(tmp_path / "scan.raw")
    assert data_file_of(StoredFile(tmp_path / "scan.raw"), METAIMAGE) is None


def test_left_and_back_become_right_and_front() -> None:
    affine = make_affine(np.diag([1.0, 2, 3]), [4.0, 5, 6], "LPS")
    np.testing.assert_array_equal(affine, [[-1, 0, 0, -4], [0, -2, 0, -5], [0, 0, 3, 6], [0, 0, 0, 1]])


def test_numbers_are_counted() -> None:
    assert parse_numbers("1 2.5", 2) == [1.0, 2.5]
    for text in ("1 2", "1 2 3 4", "1 2 nan", "1 2 inf", "1 2 x"):
        with pytest.raises(ValueError, match=r"expected 3|convert"):
            parse_numbers(text, 3)
