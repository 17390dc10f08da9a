"""NRRD headers: what is read, and what is refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io.nrrd import parse_nrrd_header, read_nrrd
from anomaly.io.stored_file import StoredFile

HEADER = """NRRD0004
# a comment
type: short
dimension: 3
space: left-posterior-superior
sizes: 9 8 7
space directions: (1.5,0,0) (0,0,2) (0,2.5,0)
kinds: domain domain domain
endian: little
encoding: gzip
space origin: (10,-20,30)
key:=value

"""


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1)), ("LAS", (-1, 1)), ("right-anterior-superior", (1, 1))],
)
def test_the_affine_is_in_ras(space: str, signs: tuple[int, int]) -> None:
    header = parse_nrrd_header(HEADER.replace("left-posterior-superior", space))
    x, y = signs
    expected = [[1.5 * x, 0, 0, 10 * x], [0, 0, 2.5 * y, -20 * y], [0, 2, 0, 30], [0, 0, 0, 1]]
    np.testing.assert_array_equal(header.affine, expected)


def test_type_and_byte_order_are_read() -> None:
    header = parse_nrrd_header(HEADER)
    assert (header.shape, header.dtype, header.is_compressed) == ((9, 8, 7), np.dtype("<i2"), True)
    swapped = HEADER.replace("little", "big").replace("short", "unsigned int")
    assert parse_nrrd_header(swapped).dtype == np.dtype(">u4")


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("gzip", "ascii", "unreadable"),
        ("gzip", "bzip2", "unreadable"),
        ("short", "block", "unreadable"),
        ("left-posterior-superior", "scanner-xyz", "missing_geometry"),
        ("space origin: (10,-20,30)\n", "", "missing_geometry"),
        ("space directions: (1.5,0,0) (0,0,2) (0,2.5,0)", "spacings: 1 1 1", "missing_geometry"),
        ("space origin", 'space units: "m" "m" "m"\nspace origin', "unreadable"),
        ("dimension: 3", "dimension: 4", "unreadable"),
        ("dimension: 3", "dimension: 4\nsizes: 9 8 7 6", "unreadable"),
        ("sizes: 9 8 7", "sizes: 9 -8 7", "not_3d"),
        ("sizes: 9 8 7", "sizes: 9 8 seven", "unreadable"),
        ("sizes: 9 8 7\n", "", "unreadable"),
        ("endian: little\n", "", "unreadable"),
        ("(0,2.5,0)", "none", "unreadable"),
        ("encoding: gzip", "encoding: gzip\ndata file: ../elsewhere.raw", "unreadable"),
    ],
)  # fmt: skip
def test_a_header_that_is_not_supported_is_refused(tmp_path_factory, old: str, new: str, code: str) -> None:
    assert HEADER.count(old) == 1
    path = tmp_path_factory.mktemp("nrrd") / "scan.nrrd"
    path.write_bytes(HEADER.replace(old, new).encode() + gzip.compress(bytes(1008)))
    with pytest.raises(ScanRefusedError) as caught:
        read_nrrd(StoredFile(path))
    assert caught.value.code == code
