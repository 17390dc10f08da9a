from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from anomaly.cohort.lesion_shapes import (
    lesion_shapes,
    periventricular_white_matter,
    random_blob,
    random_crescent,
    random_foci,
    smooth_noise,
)
from anomaly.core.errors import InputError
from anomaly.core.volume import Geometry, MaskArray
from anomaly.preprocessing.grid import resample_mask
from anomaly.preprocessing.template import template_on
from tests.conftest import make_volume

GRID = Geometry((32, 36, 30), np.diag([2.0, 2.0, 2.0, 1.0]))


def brain() -> MaskArray:
    return np.asarray(make_volume(GRID.shape, 2.0).voxels > 0)


def ball(centre: tuple[int, int, int] = (16, 18, 15), radius: float = 4.0) -> MaskArray:
    i, j, k = np.indices(GRID.shape)
    return np.asarray((i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 <= radius**2)


@pytest.mark.parametrize("volume_ml", [0.5, 3.0, 20.0])
def test_a_blob_is_connected_and_has_about_the_given_volume(volume_ml: float, rng: np.random.Generator) -> None:
    mask = brain()
    for _ in range(5):
        blob = random_blob(mask, volume_ml, GRID.voxel_ml, rng)
        assert 0.5 * volume_ml <= blob.sum() * GRID.voxel_ml <= 1.05 * volume_ml
        assert ndimage.label(blob)[1] == 1
        assert not (blob & ~mask).any()


def test_a_blob_larger_than_the_brain_is_refused(rng: np.random.Generator) -> None:
    mask = brain()
    with pytest.raises(InputError, match="does not fit"):
        random_blob(mask, 1e5, GRID.voxel_ml, rng)


def test_real_shapes_are_resampled_to_the_given_grid(tmp_path: Path) -> None:
    # the same ball, stored with a flipped first axis
    affine = GRID.affine.copy()
    affine[0, 0], affine[0, 3] = -2.0, 2.0 * (GRID.shape[0] - 1)
    nib.save(nib.Nifti1Image(ball((10, 18, 15))[::-1].astype(np.uint8), affine), tmp_path / "a_mask.nii.gz")
    shapes = lesion_shapes(tmp_path, GRID)
    assert len(shapes) == 1
    np.testing.assert_array_equal(shapes[0], ball((10, 18, 15)))
    np.testing.assert_array_equal(shapes[:1][0], shapes[0])


def test_a_folder_without_shapes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no lesion shapes"):
        lesion_shapes(tmp_path, GRID)


def test_resampling_keeps_a_lesions_volume() -> None:
    fine = Geometry((64, 72, 60), np.diag([1.0, 1.0, 1.0, 1.0]))
    moved = resample_mask(ball(radius=6), GRID, fine, antialias=False)
    assert moved.sum() * fine.voxel_ml == pytest.approx(ball(radius=6).sum() * GRID.voxel_ml, rel=0.1)


@pytest.mark.real_data
def test_real_stroke_shapes_keep_their_volume_on_another_grid(anomaly_data: Path) -> None:
    folder = anomaly_data / "lesion_shapes"
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    shapes = lesion_shapes(folder, Geometry((91, 109, 91), affine))
    assert len(shapes) == 150
    for index in range(0, 150, 30):
        stored = nib.load(shapes.paths[index])
        volume = np.count_nonzero(np.asarray(stored.dataobj)) * abs(np.linalg.det(stored.affine[:3, :3]))
        assert shapes[index].sum() * 8 == pytest.approx(volume, rel=0.15, abs=80)


def test_smooth_noise_has_mean_0_and_standard_deviation_1(rng: np.random.Generator) -> None:
    noise = smooth_noise((20, 20, 20), 2.0, rng)
    assert noise.mean() == pytest.approx(0, abs=1e-9)
    assert noise.std() == pytest.approx(1)
    assert np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1] > 0.8


def test_foci_are_several_small_lesions(rng: np.random.Generator) -> None:
    fine = Geometry((64, 72, 60), np.eye(4))
    mask = np.asarray(make_volume(fine.shape, 1.0).voxels > 0)
    for _ in range(5):
        foci = random_foci(mask, (0.05, 1.0), fine, rng)
        labels, n_foci = ndimage.label(foci)
        assert 1 <= n_foci <= 12
        assert not (foci & ~mask).any()
        assert 0.02 <= foci.sum() * fine.voxel_ml <= 12
        assert np.bincount(labels.ravel())[1:].min() >= 10


def test_foci_lie_where_they_are_likely(rng: np.random.Generator) -> None:
    likely = ball(radius=3).astype(np.float32)
    foci = random_foci(brain(), (0.05, 0.3), GRID, rng, likely)
    assert (foci & ball(radius=7)).sum() == foci.sum() > 0


def test_foci_without_a_place_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="do not fit"):
        random_foci(brain(), (0.05, 0.3), GRID, rng, np.zeros(GRID.shape))


@pytest.mark.slow
def test_foci_are_most_likely_in_white_matter_near_the_ventricles() -> None:
    template = template_on(4.0)
    likely = periventricular_white_matter(template.geometry)
    assert likely is not None
    assert not likely[template.white <= 0.5].any()
    centre = np.array([likely.nonzero()[axis] for axis in range(3)]).T
    near = np.average(np.linalg.norm(centre - np.array(likely.shape) / 2, axis=1), weights=likely[likely > 0])
    anywhere = np.linalg.norm(centre - np.array(likely.shape) / 2, axis=1).mean()
    assert near < 0.9 * anywhere
    assert periventricular_white_matter(GRID) is None


def test_a_crescent_lies_along_the_edge_of_one_side(rng: np.random.Generator) -> None:
    mask = brain()
    for _ in range(5):
        crescent = random_crescent(mask, 4.0, GRID, rng)
        volume = crescent.sum() * GRID.voxel_ml
        assert 2 <= volume <= 4.1
        assert not (crescent & ~mask).any()
        depth = ndimage.distance_transform_edt(mask)
        assert depth[crescent].mean() < 0.5 * depth[mask].mean()
        sides = np.argwhere(crescent)[:, 0] > (GRID.shape[0] - 1) / 2
        assert sides.mean() in (pytest.approx(0, abs=0.1), pytest.approx(1, abs=0.1))
        extent = np.ptp(np.argwhere(crescent), axis=0)
        assert extent.max() > 2 * extent.min() or extent.max() > 1.5 * depth[crescent].max()
