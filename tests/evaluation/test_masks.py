from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import InputError
from anomaly.evaluation.masks import localise_files, read_image

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)
    return path


def files(folder: Path) -> tuple[Path, Path, Path]:
    lesion = np.zeros((8, 9, 7))
    lesion[2:4, 2:4, 2:4] = 1
    evidence = 0.1 + lesion
    evidence[0] = 0
    names = ("map.nii.gz", "lesion.nii.gz", "flagged.nii.gz")
    map_path, lesion_path, flagged_path = (folder / name for name in names)
    return write(map_path, evidence), write(lesion_path, lesion), write(flagged_path, lesion)


def test_a_map_that_shows_the_lesion_is_perfect(tmp_path: Path) -> None:
    found = localise_files(*files(tmp_path))
    assert (found.average_precision, found.dice, found.oracle_dice) == (1.0, 1.0, 1.0)
    assert found.lesion_ml == pytest.approx(8 * 0.008)


def test_without_a_calibration_there_is_no_dice(tmp_path: Path) -> None:
    map_path, lesion_path, _ = files(tmp_path)
    assert localise_files(map_path, lesion_path, None).dice is None


@pytest.mark.parametrize("shift_mm", [0.05, 1.0])
def test_a_mask_must_be_on_the_grid_of_the_scan(tmp_path: Path, shift_mm: float) -> None:
    map_path, lesion_path, _ = files(tmp_path)
    moved = AFFINE.copy()
    moved[0, 3] = shift_mm
    write(lesion_path, nib.load(lesion_path).get_fdata(), moved)
    if shift_mm < 0.2:  # a header may be rounded
        assert localise_files(map_path, lesion_path, None).average_precision == 1.0
    else:
        with pytest.raises(InputError, match="not on the grid of the scan"):
            localise_files(map_path, lesion_path, None)


def test_a_mask_of_another_shape_names_both_shapes(tmp_path: Path) -> None:
    map_path, lesion_path, _ = files(tmp_path)
    write(lesion_path, np.ones((4, 4, 4)))
    with pytest.raises(InputError, match=r"found \(4, 4, 4\).*expected \(8, 9, 7\)"):
        localise_files(map_path, lesion_path, None)


def test_an_empty_lesion_mask_is_refused(tmp_path: Path) -> None:
    map_path, lesion_path, _ = files(tmp_path)
    write(lesion_path, np.zeros((8, 9, 7)))
    with pytest.raises(InputError, match="is empty"):
        localise_files(map_path, lesion_path, None)


def test_a_missing_or_broken_mask_is_named(tmp_path: Path) -> None:
    map_path, lesion_path, _ = files(tmp_path)
    with pytest.raises(InputError, match="no lesion mask at"):
        localise_files(map_path, tmp_path / "none.nii.gz", None)
    lesion_path.write_bytes(b"not an image")
    with pytest.raises(InputError, match="cannot read the lesion mask"):
        localise_files(map_path, lesion_path, None)


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    voxels, _ = read_image(write(tmp_path / "a.nii", np.ones((3, 4, 5, 1, 1))), "map")
    assert voxels.shape == (3, 4, 5)
    with pytest.raises(InputError, match="three axes"):
        read_image(write(tmp_path / "b.nii", np.ones((3, 4, 5, 2))), "map")
