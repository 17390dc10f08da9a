from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.volume import Geometry
from anomaly.export.nifti import write_nifti
from anomaly.io.nifti import read_mask
from tests.conftest import make_volume

OBLIQUE = np.array([[0, 0, 2.0, -70], [-2.0, 0, 0, 74], [0, 1.5, 0, -67], [0, 0, 0, 1.0]])
SHEARED = np.array([[-1.5, 0, 0, 70], [0, -1.42, 0, 60], [0, -0.48, 3.0, -80], [0, 0, 0, 1.0]])


def noise(shape: tuple[int, ...] = (9, 8, 7)) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


def test_int16_maps_keep_zero_and_four_digits(tmp_path: Path) -> None:
    volume = make_volume()
    values = volume.voxels - 90 * (volume.voxels > 0)
    write_nifti(tmp_path / "map.nii.gz", values, volume.geometry, "int16")
    stored = nib.load(tmp_path / "map.nii.gz")
    assert stored.get_data_dtype() == np.int16
    np.testing.assert_allclose(stored.get_fdata(), values, atol=np.abs(values).max() / 32767)
    assert (stored.get_fdata()[values == 0] == 0).all()


def test_an_empty_mask_can_be_written_and_read(tmp_path: Path) -> None:
    geometry = Geometry((4, 4, 4), np.eye(4))
    for dtype in ("uint8", "int16"):
        write_nifti(tmp_path / "mask.nii.gz", np.zeros((4, 4, 4)), geometry, dtype)
        assert not read_mask(tmp_path / "mask.nii.gz").any()


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    volume = make_volume()
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, volume.voxels, volume.geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_qform_and_sform_are_equal(tmp_path: Path) -> None:
    write_nifti(tmp_path / "map.nii", noise(), Geometry((9, 8, 7), OBLIQUE))
    header = nib.load(tmp_path / "map.nii").header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)


def test_a_map_of_the_wrong_shape_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        write_nifti(tmp_path / "map.nii", noise(), Geometry((9, 8, 6), np.eye(4)))
    assert not list(tmp_path.iterdir())


def test_a_sheared_grid_is_in_the_sform_alone(tmp_path: Path) -> None:
    write_nifti(tmp_path / "map.nii", noise(), Geometry((9, 8, 7), SHEARED))
    header = nib.load(tmp_path / "map.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 1)
    np.testing.assert_allclose(header.get_sform(), SHEARED, atol=1e-5)
