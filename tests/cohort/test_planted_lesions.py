from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from anomaly.cohort.planted_lesions import (
    LESION_KINDS,
    LESION_STRENGTHS,
    LesionKind,
    draw_strength,
    lesion_shapes,
    plant,
    plant_in_scan,
    planted_scans,
    random_blob,
)
from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.errors import InputError
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.preprocessing.grid import resample_mask
from tests.conftest import make_volume

GRID = Geometry((32, 36, 30), np.diag([2.0, 2.0, 2.0, 1.0]))


def brain(seed: int = 0) -> tuple[FloatArray, MaskArray]:
    volume = make_volume(GRID.shape, 2.0, seed)
    return volume.voxels, volume.voxels > 0


def ball(centre: tuple[int, int, int] = (16, 18, 15), radius: float = 4.0) -> MaskArray:
    i, j, k = np.indices(GRID.shape)
    return np.asarray((i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 <= radius**2)


class Scans:
    grid = GRID

    def __len__(self) -> int:
        return 4

    def covariates(self, index: int) -> FloatArray:
        del index
        return UNKNOWN_COVARIATES

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        return brain(index)


def test_a_dark_lesion_decreases_the_signal_by_its_strength(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    planted = plant(voxels, mask, ball(), "dark", 0.4, rng)
    core = ball(radius=1.5)
    np.testing.assert_allclose(planted.voxels[core] / voxels[core], 0.6, atol=0.01)


def test_a_bright_lesion_increases_the_signal_by_its_strength(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    core = ball(radius=1.5)
    planted = plant(voxels, mask, ball(), "bright", 0.3, rng)
    np.testing.assert_allclose(planted.voxels[core] / voxels[core], 1.3, atol=0.01)


def test_signal_loss_is_relative_to_the_intensity_of_zero_signal(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    planted = plant(voxels - 100, mask, ball(), "dark", 0.4, rng, no_signal=-100.0)
    np.testing.assert_allclose(
        planted.voxels + 100, plant(voxels, mask, ball(), "dark", 0.4, rng).voxels, atol=1e-3
    )


def test_a_texture_lesion_keeps_the_mean_and_changes_the_texture(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    planted = plant(voxels, mask, ball(), "texture", 1.0, rng)
    change = (planted.voxels - voxels)[mask]
    assert abs(change.sum()) < 1e-3 * np.abs(change).sum()
    assert planted.voxels[ball()].std() > 1.2 * voxels[ball()].std()


def test_mass_effect_moves_tissue_outwards(rng: np.random.Generator) -> None:
    mask = ball(radius=12)
    marker = np.where(mask, 100, 0).astype(np.float32)
    marker[18, 18, 15] = 500  # two voxels to the right of the centre
    planted = plant(marker, mask, ball(), "mass_effect", 0.5, rng)
    moved = planted.voxels[16:, 18, 15]
    assert 3 <= int(moved.argmax()) <= 4


def test_mass_effect_keeps_the_outline_of_the_brain(rng: np.random.Generator) -> None:
    mask = ball(radius=12)
    voxels = np.where(mask, 100, 0).astype(np.float32)
    planted = plant(voxels, mask, ball((10, 18, 15)), "mass_effect", 0.6, rng)
    np.testing.assert_allclose(planted.voxels[mask], 100, rtol=0.35)
    assert (planted.voxels[mask] > 0).all()


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_every_kind_changes_the_lesion_and_nothing_outside_the_brain(
    kind: LesionKind, rng: np.random.Generator
) -> None:
    voxels, mask = brain()
    planted = plant(voxels, mask, ball((10, 18, 15)), kind, draw_strength(kind, rng), rng)
    assert np.abs(planted.voxels - voxels)[planted.lesion].mean() > 0.5
    np.testing.assert_array_equal(planted.voxels[~mask], voxels[~mask])
    assert not (planted.lesion & ~mask).any()
    assert planted.voxels.dtype == np.float32
    assert planted.kind == kind


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_the_same_seed_plants_the_same_lesion(kind: LesionKind) -> None:
    voxels, mask = brain()
    first, second = (plant(voxels, mask, ball(), kind, 0.4, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.voxels, second.voxels)


def test_a_dark_lesion_has_soft_edges(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    loss = 1 - plant(voxels, mask, ball(), "dark", 0.4, rng).voxels[mask] / voxels[mask]
    assert ((loss > 0.05) & (loss < 0.35)).sum() > 50


def test_planting_does_not_change_the_healthy_scan(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    before = voxels.copy()
    plant(voxels, mask, ball(), "dark", 0.4, rng)
    np.testing.assert_array_equal(voxels, before)


def test_strengths_stay_in_their_range(rng: np.random.Generator) -> None:
    drawn = [draw_strength("dark", rng) for _ in range(100)]
    assert LESION_STRENGTHS["dark"] == (0.15, 0.5)
    assert min(drawn) >= 0.15
    assert max(drawn) <= 0.5


def test_an_unknown_kind_is_refused_with_the_known_ones(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    with pytest.raises(InputError, match="bright, dark, mass_effect, texture"):
        plant(voxels, mask, ball(), "wavy", 0.4, rng)  # type: ignore[arg-type]


def test_a_lesion_outside_the_brain_is_refused(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    with pytest.raises(InputError, match="does not overlap the foreground"):
        plant(voxels, mask, ~mask, "dark", 0.4, rng)


@pytest.mark.parametrize("volume_ml", [0.5, 3.0, 20.0])
def test_a_blob_is_connected_and_has_about_the_given_volume(volume_ml: float, rng: np.random.Generator) -> None:
    _, mask = brain()
    for _ in range(5):
        blob = random_blob(mask, volume_ml, GRID.voxel_ml, rng)
        assert 0.5 * volume_ml <= blob.sum() * GRID.voxel_ml <= 1.05 * volume_ml
        assert ndimage.label(blob)[1] == 1
        assert not (blob & ~mask).any()


def test_a_blob_larger_than_the_brain_is_refused(rng: np.random.Generator) -> None:
    _, mask = brain()
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


def test_a_lesion_is_planted_at_its_position_in_an_oblique_scan(rng: np.random.Generator) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    oblique = np.array([[-1.5 * c, -s, 0, 40], [-1.5 * s, c, 0, 20], [0, 0, 1.25, -10], [0, 0, 0, 1]])
    scan = make_volume((40, 44, 36), 1.0).with_voxels(np.full((40, 44, 36), 80.0), Geometry((40, 44, 36), oblique))
    centre = scan.geometry.to_world([20, 22, 18])  # where the lesion is to appear, in the scan's world
    shift = np.eye(4)
    shift[:3, 3] = GRID.to_world([16, 18, 15]) - centre
    planted, lesion = plant_in_scan(scan, shift, ball(), GRID, "dark", 0.5, rng)
    np.testing.assert_allclose(np.argwhere(lesion).mean(axis=0), [20, 22, 18], atol=0.3)
    assert planted.voxels[20, 22, 18] == pytest.approx(40, abs=1)
    assert lesion.sum() * scan.geometry.voxel_ml == pytest.approx(ball().sum() * GRID.voxel_ml, rel=0.15)
    assert planted.meta["synthetic_lesion"]["kind"] == "dark"
    assert "synthetic_lesion" not in scan.meta


def test_a_lesion_in_a_scan_stays_inside_the_brain(rng: np.random.Generator) -> None:
    voxels, mask = brain()
    scan = make_volume(GRID.shape, 2.0).with_voxels(voxels, GRID)
    planted, lesion = plant_in_scan(scan, np.eye(4), ball((6, 18, 15)), GRID, "dark", 0.4, rng)
    assert lesion.any()
    assert not (lesion & ~mask).any()
    np.testing.assert_array_equal(planted.voxels[~mask], voxels[~mask])


def test_planted_scans_are_reproducible_by_their_seed() -> None:
    first, second, other = (list(planted_scans(Scans(), seed, kinds=LESION_KINDS)) for seed in (1, 1, 2))
    assert [scan.kind for scan in first] == list(LESION_KINDS)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.voxels, b.voxels)
    assert any((a.lesion != b.lesion).any() for a, b in zip(first, other, strict=True))


def test_planted_scans_use_real_shapes_that_fit() -> None:
    _, mask = brain()
    for scan in planted_scans(Scans(), 0, shapes=[ball()]):
        np.testing.assert_array_equal(scan.lesion, ball() & scan.mask)
    for scan in planted_scans(Scans(), 0, shapes=[~mask], volume_ml=(1, 2)):
        assert scan.lesion.any()  # a shape outside the brain gives way to a blob


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
