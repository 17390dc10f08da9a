"""Reading NIfTI files as volumes, and refusing those that are not usable scans."""

from __future__ import annotations

import gzip
import tracemalloc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Geometry, Modality
from anomaly.export.nifti import write_nifti
from anomaly.io.nifti import read_geometry, read_nifti
from anomaly.io.stored_file import StoredFile

OBLIQUE = np.array([[-1.9, 0.3, 0.2, 60], [0.3, 1.9, -0.5, -70], [0.2, 0.6, 2.9, -40], [0, 0, 0, 1.0]])
FLIPPED = np.array([[0, 0, 2.0, -70], [-2.0, 0, 0, 74], [0, 1.5, 0, -67], [0, 0, 0, 1.0]])
SHEARED = np.array([[-1.5, 0, 0, 70], [0, -1.42, 0, 60], [0, -0.48, 3.0, -80], [0, 0, 0, 1.0]])


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
    path.write_bytes(gzip.compress(image.to_bytes()) if path.name.endswith(".gz") else image.to_bytes())
    return path


def noise(shape: tuple[int, ...] = (9, 8, 7), dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape).astype(dtype)


def refusal(path: Path) -> ScanRefusedError:
    with pytest.raises(ScanRefusedError) as caught:
        read_nifti(path)
    return caught.value


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED, SHEARED], ids=["oblique", "flipped", "sheared"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_written_volume_is_read_back_with_the_same_geometry(
    tmp_path: Path, affine: np.ndarray, name: str
) -> None:
    geometry = Geometry((9, 8, 7), affine)
    write_nifti(tmp_path / name, noise(), geometry)
    volume = read_nifti(tmp_path / name, modality=Modality.T1W)
    np.testing.assert_array_equal(volume.voxels, noise())
    assert volume.geometry.same_as(geometry)
    assert volume.scan_id == "scan"
    assert volume.modality is Modality.T1W


def test_the_scaling_of_the_file_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(dtype=np.int16), np.eye(4) * [2, 2, 2, 1])
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([0.5, -10], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(content)
    np.testing.assert_allclose(read_nifti(tmp_path / "scan.nii").voxels, noise(dtype=np.int16) * 0.5 - 10)


def test_without_sform_the_qform_is_the_geometry(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), None)
    image.set_qform(FLIPPED, code=1)
    image.set_sform(None, code=0)
    (tmp_path / "scan.nii").write_bytes(image.to_bytes())
    np.testing.assert_allclose(read_nifti(tmp_path / "scan.nii").geometry.affine, FLIPPED, atol=1e-5)


def test_a_fourth_axis_of_one_is_dropped(tmp_path: Path) -> None:
    assert read_nifti(save(tmp_path / "scan.nii", noise((9, 8, 7, 1)))).voxels.shape == (9, 8, 7)


@pytest.mark.parametrize("shape", [(9, 8, 7, 3), (9, 8), (9, 8, 1)], ids=["4D", "2D", "one slice"])
def test_an_image_that_is_not_3d_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert refusal(save(tmp_path / "scan.nii", noise(shape))).code == "not_3d"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_numbers_are_refused(tmp_path: Path, value: float) -> None:
    data = noise()
    data[3, 3, :2] = value
    error = refusal(save(tmp_path / "scan.nii", data))
    assert error.code == "non_finite"
    assert "2 voxels" in error.found


def test_a_constant_image_is_refused(tmp_path: Path) -> None:
    assert refusal(save(tmp_path / "scan.nii", np.full((9, 8, 7), 5, np.int16))).code == "constant"


def test_an_image_without_geometry_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", noise())
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)
    assert refusal(path).code == "missing_geometry"


@pytest.mark.parametrize(
    "affine",
    [np.diag([0.0, 2, 2, 1]), np.diag([400.0, 400, 400, 1]), np.diag([0.01, 1, 1, 1]),
     np.array([[1, 1, 0, 0], [1, 1.01, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), np.diag([np.nan, 1, 1, 1])],
    ids=["zero", "400 mm", "10 µm", "parallel axes", "not a number"],
)  # fmt: skip
def test_absurd_geometry_is_refused(tmp_path: Path, affine: np.ndarray) -> None:
    path = save(tmp_path / "scan.nii", noise())
    content = bytearray(path.read_bytes())
    content[280:328] = affine[:3].astype("<f4").tobytes()  # nibabel refuses to write some of these
    path.write_bytes(content)
    assert refusal(path).code == "absurd_geometry"


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
def test_a_truncated_file_is_refused_as_unreadable(tmp_path: Path, name: str, share: float) -> None:
    path = save(tmp_path / name, noise((30, 30, 30)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).code == "unreadable"


def test_a_file_that_is_not_nifti_is_refused_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_text("not an image")
    assert refusal(tmp_path / "scan.nii.gz").code == "unreadable"


def test_colour_images_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((9, 8, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refusal(save(tmp_path / "scan.nii", colours)).code == "not_scalar"


def test_a_header_with_an_impossible_size_is_refused_before_the_voxels_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", noise())
    content = bytearray(path.read_bytes())
    content[40:48] = np.array([3, 32000, 32000, 32000], "<i2").tobytes()
    path.write_bytes(content)
    assert refusal(path).code == "too_large"


def test_a_claim_that_the_file_cannot_hold_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    content = bytearray(gzip.decompress(save(tmp_path / "scan.nii.gz", noise()).read_bytes()))
    content[40:48] = np.array([3, 1000, 1000, 900], "<i2").tobytes()
    for name, stored in (("scan.nii", bytes(content)), ("scan.nii.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(stored)
        tracemalloc.start()
        error = refusal(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "3,600,000,352 bytes" in error.expected
        assert peak < 1 << 21


def test_a_nifti_2_claim_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    content = bytearray(nib.Nifti2Image(noise(), np.diag([2.0, 2, 2, 1])).to_bytes())
    content[16:48] = np.array([3, 1 << 32, 1 << 31, 2], "<i8").tobytes()
    (tmp_path / "scan.nii").write_bytes(content)
    assert refusal(tmp_path / "scan.nii").code == "too_large"


@pytest.mark.parametrize("change", [-1, 1, 5000])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_file_longer_or_shorter_than_its_header_says_is_refused(tmp_path: Path, name: str, change: int) -> None:
    content = nib.Nifti1Image(noise(), np.diag([2.0, 2, 2, 1])).to_bytes()
    changed = content[:change] if change < 0 else content + bytes(change)
    (tmp_path / name).write_bytes(gzip.compress(changed) if name.endswith(".gz") else changed)
    error = refusal(tmp_path / name)
    assert error.code == "unreadable"
    assert error.expected == "2,368 bytes, as the header says"


def test_no_flipped_bit_of_a_compressed_file_changes_a_voxel_unseen(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", noise(dtype=np.int16))
    stored, truth = path.read_bytes(), read_nifti(path)
    n_refused = 0
    bits = range(0, 8 * len(stored), 61)
    for bit in bits:
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            volume = read_nifti(path)
        except ScanRefusedError:
            n_refused += 1
            continue
        np.testing.assert_array_equal(volume.voxels, truth.voxels)
        np.testing.assert_array_equal(volume.geometry.affine, truth.geometry.affine)
    assert n_refused > 0.9 * len(bits), "only a flip in the date or in padding changes nothing"


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_members_of_a_gzip_file_are_read_one_after_the_other(tmp_path: Path, name: str) -> None:
    content = nib.Nifti1Image(noise(), np.diag([2.0, 2, 2, 1])).to_bytes()
    parts = [gzip.compress(content[start : start + 500]) for start in range(0, len(content), 500)]
    (tmp_path / name).write_bytes(b"".join(parts) + bytes(512))
    np.testing.assert_array_equal(read_nifti(tmp_path / name).voxels, noise())


def test_bytes_after_the_end_of_gzip_data_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", noise())
    path.write_bytes(path.read_bytes() + b"more")
    assert refusal(path).found == "bytes after the end of the gzip data"


def test_compression_is_told_by_the_content_not_by_the_name(tmp_path: Path) -> None:
    content = nib.Nifti1Image(noise(), np.diag([2.0, 2, 2, 1])).to_bytes()
    for name, stored in (
        ("a.Nii.Gz", content),
        ("b.NII", gzip.compress(content)),
        ("c.nii.GZ", gzip.compress(content)),
    ):
        (tmp_path / name).write_bytes(stored)
        volume = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, noise())
        assert volume.scan_id == name[0]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_extensions_before_the_voxels_are_skipped(tmp_path: Path, kind: type, byte_order: str) -> None:
    header = kind.header_class(endianness=byte_order)
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Monday"))
    image = kind(noise(dtype=np.int16), np.diag([2.0, 2, 2, 1]), header)
    (tmp_path / "scan.nii").write_bytes(image.to_bytes())
    np.testing.assert_array_equal(read_nifti(tmp_path / "scan.nii").voxels, noise(dtype=np.int16))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer"),
        (b"../../.git/annex/objects/Kp/8P/SHA256E-s12--ab.nii.gz", "a git-annex pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (bytes(5000), "zero bytes only"),
        (b"PK\x03\x04" + bytes(500), "a zip"),
        (bytes(128) + b"DICM" + bytes(500), "a DICOM file"),
        (b"BZh91AY" + bytes(500), "bzip2 data"),
    ],
)  # fmt: skip
def test_what_is_no_nifti_file_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    for name in ("scan.nii", "scan.nii.gz"):
        (tmp_path / name).write_bytes(content)
        error = refusal(tmp_path / name)
        assert error.code == "unreadable"
        assert error.found.startswith(found)


def test_a_pair_reads_like_a_single_file(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(dtype=np.int16), OBLIQUE)
    nib.Nifti1Pair(noise(dtype=np.int16), OBLIQUE).to_filename(tmp_path / "pair.img")
    (tmp_path / "single.nii").write_bytes(image.to_bytes())
    single = read_nifti(tmp_path / "single.nii")
    for name in ("pair.img", "pair.hdr"):
        volume = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, single.voxels)
        np.testing.assert_array_equal(volume.geometry.affine, single.geometry.affine)
        assert volume.scan_id == "pair"


def test_a_compressed_pair_with_upper_case_endings_is_read(tmp_path: Path) -> None:
    nib.Nifti1Pair(noise(), OBLIQUE).to_filename(tmp_path / "pair.img")
    for name in ("hdr", "img"):
        content = (tmp_path / f"pair.{name}").read_bytes()
        (tmp_path / f"PAIR.{name.upper()}.GZ").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_nifti(tmp_path / "PAIR.IMG.GZ").voxels, noise())


@pytest.mark.parametrize("missing", ["img", "hdr"])
def test_half_of_a_pair_is_refused(tmp_path: Path, missing: str) -> None:
    nib.Nifti1Pair(noise(), OBLIQUE).to_filename(tmp_path / "pair.img")
    (tmp_path / f"pair.{missing}").unlink()
    other = {"img": "hdr", "hdr": "img"}[missing]
    assert refusal(tmp_path / f"pair.{other}").found == f"a .{other} file without its .{missing} file"


def test_the_voxels_of_a_pair_are_as_long_as_its_header_says(tmp_path: Path) -> None:
    nib.Nifti1Pair(noise(), OBLIQUE).to_filename(tmp_path / "pair.img")
    (tmp_path / "pair.img").write_bytes((tmp_path / "pair.img").read_bytes()[:-4])
    error = refusal(tmp_path / "pair.img")
    assert (error.found, error.expected) == ("2,012 bytes of image", "2,016 bytes, as the header says")


def test_an_analyze_image_does_not_tell_left_from_right_and_is_refused(tmp_path: Path) -> None:
    nib.AnalyzeImage(noise(), np.diag([2.0, 2, 2, 1])).to_filename(tmp_path / "old.img")
    error = refusal(tmp_path / "old.img")
    assert error.code == "missing_geometry"
    assert "Analyze" in error.found


def test_a_contradiction_in_the_header_is_a_warning_of_the_volume(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(), np.diag([2.0, 2, 2, 1]))
    image.set_qform(np.diag([2.0, 2, 3, 1]), code=1)
    (tmp_path / "scan.nii").write_bytes(image.to_bytes())
    assert {warning.code for warning in read_nifti(tmp_path / "scan.nii").warnings} == {"sform_qform", "pixdim"}


def test_a_file_in_a_zip_reads_like_one_on_disk(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", noise())
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(path, "inner/scan.nii.gz")
    zipped = read_nifti(StoredFile(tmp_path / "scans.zip", "inner/scan.nii.gz"))
    np.testing.assert_array_equal(zipped.voxels, read_nifti(path).voxels)


def test_the_grid_is_read_without_the_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", noise(), OBLIQUE)
    path.write_bytes(path.read_bytes()[:400])
    assert read_geometry(path).shape == (9, 8, 7)


@pytest.mark.real_data
def test_a_real_brain_is_read(anomaly_data: Path) -> None:
    volume = read_nifti(anomaly_data / "ixi" / "sub-IXI012" / "anat" / "sub-IXI012_T1w.nii.gz")
    assert volume.geometry.spacing == pytest.approx((2, 2, 2), abs=1e-3)
    assert volume.voxels.max() > 50
