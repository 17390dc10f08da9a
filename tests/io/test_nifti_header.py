"""Fields of a NIfTI header that contradict each other or the standard: refused, or reported as a warning."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.io.nifti_header import check_fields, parse_header, read_affine

AFFINE = np.array([[-1.9, 0.3, 0.2, 60], [0.3, 1.9, -0.5, -70], [0.2, 0.6, 2.9, -40], [0, 0, 0, 1.0]])
ROTATION = np.array([[0, -2.0, 0, 60], [2.0, 0, 0, -70], [0, 0, 3.0, -40], [0, 0, 0, 1.0]])


def header(kind: type = nib.Nifti1Header, dtype: type = np.int16, **fields: Any) -> bytes:
    """Return a header with sform and qform of a rotation, and with some fields changed."""
    made = kind()
    made.set_data_shape((9, 8, 7))
    made.set_data_dtype(dtype)
    made.set_sform(ROTATION, code=1)
    made.set_qform(ROTATION, code=1)
    made["vox_offset"] = 352 if kind is nib.Nifti1Header else 544
    made["magic"] = made.single_magic
    made["scl_slope"], made["scl_inter"] = 1, 0
    for name, value in fields.items():
        made[name] = value
    return bytes(made.binaryblock)


def warnings(start: bytes, is_pair: bool = False) -> list[str]:
    parsed = parse_header(start, is_pair)
    return [warning.code for warning in check_fields(parsed, read_affine(parsed))]


def refusal(start: bytes, is_pair: bool = False) -> ScanRefusedError:
    with pytest.raises(ScanRefusedError) as caught:
        warnings(start, is_pair)
    return caught.value


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_a_sound_header_has_no_warnings(kind: type) -> None:
    parsed = parse_header(header(kind))
    assert warnings(header(kind)) == []
    assert (parsed.shape, parsed.n_voxel_bytes) == ((9, 8, 7), 1008)
    np.testing.assert_allclose(read_affine(parsed), ROTATION, atol=1e-6)


def test_the_byte_order_is_that_of_sizeof_hdr() -> None:
    swapped = bytes(nib.Nifti1Header(header(), check=False).as_byteswapped(">").binaryblock)
    np.testing.assert_allclose(read_affine(parse_header(swapped)), ROTATION, atol=1e-6)
    assert warnings(swapped) == []
    assert refusal(swapped[:4] + header()[4:]).code == "unreadable"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"sizeof_hdr": 0}, "sizeof_hdr"),
        ({"magic": b"ni1"}, "another file"),
        ({"magic": b"n+9"}, "damaged magic"),
        ({"dim": [0, 9, 8, 7, 1, 1, 1, 1]}, "0 axes"),
        ({"dim": [9, 9, 8, 7, 1, 1, 1, 1]}, "9 axes"),
        ({"dim": [3, 9, -8, 7, 1, 1, 1, 1]}, "9 × -8 × 7"),
        ({"datatype": 0}, "no data type"),
        ({"datatype": 1}, "data type"),
        ({"datatype": 999}, "999"),
        ({"vox_offset": 0}, "byte 0"),
        ({"vox_offset": 348}, "byte 348"),
        ({"vox_offset": 352.5}, "byte 352.5"),
        ({"vox_offset": np.nan}, "byte nan"),
        ({"scl_slope": np.inf}, "inf"),
        ({"scl_inter": np.nan}, "nan"),
        ({"scl_inter": -np.inf}, "-inf"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_believed_is_refused(fields: dict[str, Any], found: str) -> None:
    error = refusal(header(**fields))
    assert error.code == "unreadable"
    assert found in error.found


def test_the_voxels_of_nifti_2_start_behind_its_longer_header() -> None:
    assert "byte 352" in refusal(header(nib.Nifti2Header, vox_offset=352)).found


def test_the_voxels_of_a_pair_may_start_at_its_first_byte() -> None:
    assert warnings(header(magic=b"ni1", vox_offset=0), is_pair=True) == []


def test_an_image_with_several_volumes_is_refused() -> None:
    assert refusal(header(dim=[4, 9, 8, 7, 2, 1, 1, 1])).code == "not_3d"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"bitpix": 32}, "bitpix"),
        ({"scl_slope": np.nan, "scl_inter": np.nan}, "scaling"),
        ({"scl_slope": 0}, "scaling"),
        ({"scl_slope": 0, "scl_inter": -1024}, "scaling"),
        ({"sform_code": 260}, "xform_code"),
        ({"xyzt_units": 1}, "units"),
        ({"pixdim": [1, -2, 2, 3, 0, 0, 0, 0]}, "pixdim"),
        ({"pixdim": [1, np.nan, 2, 3, 0, 0, 0, 0]}, "pixdim"),
        ({"pixdim": [1, 0, 2, 3, 0, 0, 0, 0]}, "pixdim"),
        ({"pixdim": [1, 2, 2, 3.1, 0, 0, 0, 0]}, "pixdim"),
        ({"qoffset_x": 61}, "sform_qform"),
        ({"quatern_b": 0.05}, "sform_qform"),
        ({"quatern_b": 3}, "sform_qform"),
        ({"quatern_b": np.nan}, "sform_qform"),
        ({"sform_code": 0, "qoffset_x": 61}, "sform_qform"),
    ],
)  # fmt: skip
def test_a_contradiction_that_leaves_the_voxels_alone_is_a_warning(fields: dict[str, Any], code: str) -> None:
    assert code in warnings(header(**fields))


def test_a_slope_of_zero_is_right_for_floating_point_values() -> None:
    assert warnings(header(dtype=np.float32, scl_slope=0)) == []


def test_an_sform_and_a_qform_that_are_mirror_images_are_refused() -> None:
    error = refusal(header(pixdim=[-1, 2, 2, 3, 0, 0, 0, 0]))
    assert error.code == "contradictory_geometry"


def test_rounding_of_the_quaternion_is_no_contradiction() -> None:
    image = nib.Nifti1Image(np.zeros((256, 256, 180), np.uint8), np.diag([-1.0, -1, 1, 1]))
    for axis in np.random.default_rng(1).normal(size=(20, 3)):
        rotation = nib.quaternions.angle_axis2mat(np.pi - 1e-4, axis)  # where it is least exact
        affine = nib.affines.from_matvec(rotation, [90, -126, -72])
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        start = bytearray(image.header.binaryblock)
        start[108:112] = np.float32(352).tobytes()
        start[112:120] = np.array([1, 0], "<f4").tobytes()
        assert warnings(bytes(start)) == []


@pytest.mark.parametrize(
    "pixdim", [[1, -2, 2, 3], [1, 0, 2, 3], [1, np.nan, 2, 3]], ids=["negative", "zero", "not a number"]
)
def test_a_qform_needs_positive_voxel_sizes(pixdim: list[float]) -> None:
    error = refusal(header(sform_code=0, pixdim=[*pixdim, 0, 0, 0, 0]))
    assert error.code == "absurd_geometry"


def test_a_qform_sign_of_zero_counts_as_one() -> None:
    parsed = parse_header(header(sform_code=0, pixdim=[0, 2, 2, 3, 0, 0, 0, 0]))
    np.testing.assert_allclose(read_affine(parsed), ROTATION, atol=1e-6)


@pytest.mark.real_data
def test_no_real_scan_has_a_warning(anomaly_data: Any) -> None:
    from anomaly.io.image_stream import open_image
    from anomaly.io.stored_file import StoredFile

    for path in sorted(anomaly_data.glob("*/sub-*/**/*.nii.gz"))[::4]:
        with open_image(StoredFile(path)) as stream:
            assert warnings(stream.start) == [], path
