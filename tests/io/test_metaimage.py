"""MetaImage headers: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io.metaimage import parse_metaimage_header, read_metaimage
from anomaly.io.stored_file import StoredFile
from tests.io.image_factory import voxels

HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 0 1 0 1 0
Offset = 10 -20 30
ElementSpacing = 1.5 2 2.5
DimSize = 9 8 7
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


def test_the_affine_is_in_ras() -> None:
    expected = [[-1.5, 0, 0, -10], [0, 0, -2.5, 20], [0, 2, 0, 30], [0, 0, 0, 1]]
    np.testing.assert_array_equal(parse_metaimage_header(HEADER).affine, expected)


def test_other_names_of_fields_are_known() -> None:
    other = HEADER.replace("Offset", "Position").replace("TransformMatrix", "Rotation")
    np.testing.assert_array_equal(parse_metaimage_header(other).affine, parse_metaimage_header(HEADER).affine)


@pytest.mark.parametrize("byte_order", ["False", "True"])
def test_the_byte_order_is_that_of_the_header(tmp_path: Path, byte_order: str) -> None:
    dtype = ">i2" if byte_order == "True" else "<i2"
    text = HEADER.replace("MSB = False", f"MSB = {byte_order}")
    (tmp_path / "scan.mha").write_bytes(text.encode() + voxels().astype(dtype).tobytes(order="F"))
    np.testing.assert_array_equal(read_metaimage(StoredFile(tmp_path / "scan.mha")).voxels, voxels())


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("BinaryData = True", "BinaryData = False", "unreadable"),
        ("MET_SHORT", "MET_STRING", "unreadable"),
        ("MET_SHORT", "MET_SHORT\nElementNumberOfChannels = 3", "not_scalar"),
        ("TransformMatrix = 1 0 0 0 0 1 0 1 0\n", "", "missing_geometry"),
        ("1 0 0 0 0 1 0 1 0", "1 0 0 0 0 1 0 1 1", "unreadable"),
        ("1 0 0 0 0 1 0 1 0", "1 0 0 0 0 1 0 9 0", "unreadable"),
        ("ElementSpacing = 1.5 2 2.5\n", "", "missing_geometry"),
        ("ElementSpacing = 1.5 2 2.5", "ElementSpacing = 1.5 2", "unreadable"),
        ("NDims = 3", "NDims = 4", "unreadable"),
        ("DimSize = 9 8 7", "DimSize = 9 8 1", "not_3d"),
        ("DimSize = 9 8 7\n", "", "unreadable"),
        ("Offset = 10 -20 30", "Offset = 10 -20 30\nOrigin = 0 0 0", "unreadable"),
        ("LOCAL", "LIST", "unreadable"),
        ("LOCAL", "/dev/zero", "unreadable"),
        ("ElementDataFile = LOCAL\n", "", "unreadable"),
    ],
)  # fmt: skip
def test_a_header_that_is_not_supported_is_refused(tmp_path: Path, old: str, new: str, code: str) -> None:
    assert HEADER.count(old) == 1
    path = tmp_path / "scan.mha"
    path.write_bytes(HEADER.replace(old, new).encode() + voxels().tobytes(order="F"))
    with pytest.raises(ScanRefusedError) as caught:
        read_metaimage(StoredFile(path))
    assert caught.value.code == code
