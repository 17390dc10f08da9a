"""The same image in every format that is read: the same voxels at the same places."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.core.files import sha256_of_voxels
from anomaly.core.volume import Modality, Volume
from anomaly.io.file_types import READ_ENDINGS
from anomaly.io.image_file import files_of, read_image
from anomaly.io.stored_file import StoredFile
from tests.io.image_factory import data_file, rotated, voxels, write_by_itk, write_nifti

ITK_NAMES = ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd", "scan.img"]


def write(path: Path, compress: bool = False, dtype: type = np.int16) -> Path:
    if path.suffix in {".mgh", ".mgz"}:
        nib.MGHImage(voxels(dtype), rotated()).to_filename(path)
        return path
    return write_by_itk(path, voxels(dtype), rotated(), compress)


def assert_same(volume: Volume, truth: Volume) -> None:
    np.testing.assert_array_equal(volume.voxels, truth.voxels)
    np.testing.assert_allclose(volume.geometry.affine, truth.geometry.affine, atol=1e-4)
    assert sha256_of_voxels(volume.voxels, np.round(volume.geometry.affine, 2)) == sha256_of_voxels(
        truth.voxels, np.round(truth.geometry.affine, 2)
    )


@pytest.fixture
def truth(tmp_path: Path) -> Volume:
    (tmp_path / "truth").mkdir()
    return read_image(StoredFile(write_nifti(tmp_path / "truth" / "scan.nii", voxels(), rotated())))


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("name", [*ITK_NAMES, "scan.mgh", "scan.mgz"])
def test_every_format_gives_the_image_of_the_nifti_file(
    tmp_path: Path, truth: Volume, name: str, compress: bool
) -> None:
    volume = read_image(StoredFile(write(tmp_path / name, compress)), "sub-1", Modality.T2W)
    assert_same(volume, truth)
    assert (volume.scan_id, volume.modality, volume.warnings) == ("sub-1", Modality.T2W, ())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha", "scan.mgz"])
def test_every_type_of_number_is_read(tmp_path: Path, name: str, dtype: type) -> None:
    path = write(tmp_path / name, dtype=dtype)
    np.testing.assert_array_equal(read_image(StoredFile(path)).voxels, voxels(dtype).astype(np.float32))


@pytest.mark.parametrize("name", [*ITK_NAMES, "scan.mgz"])
def test_an_image_in_a_zip_reads_like_one_on_disk(tmp_path: Path, truth: Volume, name: str) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / name, compress=True)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (tmp_path / "in").iterdir():
            archive.write(path, f"inner/{path.name}")
    assert_same(read_image(StoredFile(tmp_path / "a.zip", f"inner/{name}")), truth)


@pytest.mark.parametrize(
    ("name", "others"),
    [("scan.nrrd", []), ("scan.mhd", ["scan.raw"]), ("scan.nhdr", ["scan.raw"]), ("scan.img", ["scan.hdr"])],
)
def test_the_files_of_an_image_are_known(tmp_path: Path, name: str, others: list[str]) -> None:
    file = StoredFile(write(tmp_path / name))
    assert [other.name for other in files_of(file)] == [name, *others]


@pytest.mark.parametrize("ending", sorted(READ_ENDINGS))
@pytest.mark.parametrize("content", [b"", b"\x00" * 4000, b"<html></html>", b"\xff\x01" * 900])
def test_any_other_content_is_refused_in_every_format(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"scan{ending}"
    path.write_bytes(content)
    with pytest.raises(ScanRefusedError) as caught:
        read_image(StoredFile(path))
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("name", [*ITK_NAMES, "scan.mgz", "scan.mgh"])
def test_an_image_cut_anywhere_is_refused_in_every_format(tmp_path: Path, name: str, compress: bool) -> None:
    stored = data_file(write(tmp_path / name, compress))
    content = stored.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95):
        stored.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ScanRefusedError) as caught:
            read_image(StoredFile(tmp_path / name))
        assert caught.value.code == "unreadable"


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha", "scan.mgz"])
def test_no_flipped_bit_of_compressed_voxels_changes_one_unseen(tmp_path: Path, truth: Volume, name: str) -> None:
    path = write(tmp_path / name, compress=True)
    stored = path.read_bytes()
    bits = range(8 * (len(stored) - 700), 8 * len(stored), 61)
    n_refused = 0
    for bit in bits:
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert_same(read_image(StoredFile(path)), truth)
        except ScanRefusedError:
            n_refused += 1
    assert n_refused > 0.9 * len(bits)
