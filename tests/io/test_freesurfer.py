"""FreeSurfer volumes: what their header claims, and what follows their voxels."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io.freesurfer import is_freesurfer_label_map, read_mgh
from anomaly.io.stored_file import StoredFile
from tests.io.image_factory import OBLIQUE, rotated, voxels


def write(path: Path, data: np.ndarray | None = None, patch: tuple[int, bytes] = (0, b"")) -> StoredFile:
    image = nib.MGHImage(voxels() if data is None else data, rotated())
    content = bytearray(image.to_bytes())
    content[patch[0] : patch[0] + len(patch[1])] = patch[1]
    path.write_bytes(content if path.suffix == ".mgh" else gzip.compress(content))
    return StoredFile(path)


def refusal(file: StoredFile) -> ScanRefusedError:
    with pytest.raises(ScanRefusedError) as caught:
        read_mgh(file)
    return caught.value


def test_a_footer_of_scan_parameters_and_tags_is_legal(tmp_path: Path) -> None:
    file = write(tmp_path / "brain.mgh")
    file.path.write_bytes(file.path.read_bytes() + bytes(3000))
    np.testing.assert_array_equal(read_mgh(file).voxels, voxels())
    file.path.write_bytes(file.path.read_bytes() + bytes(1 << 21))
    assert refusal(file).code == "unreadable"


@pytest.mark.parametrize("n_lost", [1, 3, 8])
def test_bytes_lost_before_the_voxels_are_noticed(tmp_path: Path, n_lost: int) -> None:
    file = write(tmp_path / "brain.mgh")
    content = file.path.read_bytes()
    file.path.write_bytes(content[:100] + content[100 + n_lost :])
    assert refusal(file).code == "unreadable"
    file.path.write_bytes(content[:100] + b"x" * n_lost + content[100:])
    assert "where it has none" in refusal(file).found


@pytest.mark.parametrize("name", ["brain.mgh", "brain.mgz"])
def test_a_claim_that_the_file_cannot_hold_takes_no_memory(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, patch=(4, np.array([1000, 1000, 900, 1], ">i4").tobytes()))
    tracemalloc.start()
    error = refusal(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "1,800,000,284 bytes" in error.expected
    assert peak < 1 << 21


@pytest.mark.parametrize(
    ("offset", "value", "code"),
    [(0, 2, "unreadable"), (4, 0, "not_3d"), (4, -9, "not_3d"), (16, 3, "not_3d"), (20, 7, "unreadable")],
    ids=["version", "no voxels", "negative", "frames", "type"],
)
def test_a_header_that_cannot_be_believed_is_refused(tmp_path: Path, offset: int, value: int, code: str) -> None:
    assert refusal(write(tmp_path / "brain.mgz", patch=(offset, np.array(value, ">i4").tobytes()))).code == code


def test_directions_that_are_not_of_length_one_are_refused(tmp_path: Path) -> None:
    patch = (42, np.array(3, ">f4").tobytes())
    assert refusal(write(tmp_path / "brain.mgz", patch=patch)).code == "absurd_geometry"


def test_a_volume_without_geometry_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "brain.mgz", patch=(28, bytes(2)))).code == "missing_geometry"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("aseg.mgz", True), ("aparc.DKTatlas+aseg.mgz", True), ("wm.mgz", True), ("wm.asegedit.mgz", True),
     ("lh.ribbon.mgz", True), ("filled.mgz", True), ("lh.hippoAmygLabels-T1.v21.mgz", True), ("T1.mgz", False),
     ("orig.mgz", False), ("brainmask.mgz", False), ("orig/001.mgz", False), ("aseg.nii.gz", False)],
)  # fmt: skip
def test_label_maps_of_freesurfer_are_known(name: str, expected: bool) -> None:
    assert is_freesurfer_label_map(name) is expected


def test_the_affine_is_that_of_nibabel(tmp_path: Path) -> None:
    nib.MGHImage(voxels(), OBLIQUE).to_filename(tmp_path / "brain.mgz")
    expected = nib.load(tmp_path / "brain.mgz").affine
    np.testing.assert_array_equal(read_mgh(StoredFile(tmp_path / "brain.mgz")).geometry.affine, expected)
