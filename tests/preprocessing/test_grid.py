"""Resampling between grids, and cropping."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import InputError
from anomaly.core.volume import Geometry, Volume
from anomaly.preprocessing.grid import (
    box_around,
    crop,
    resample,
    resample_mask,
    to_scan_grid,
    to_target_grid,
    world_grid,
)
from anomaly.preprocessing.template import target_grid
from tests.preprocessing.phantoms import placement


def affine_of(spacing: tuple[float, float, float], flip: bool = False, tilt: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(tilt, -tilt, tilt / 2) @ np.diag(spacing)
    if flip:
        affine[:3, 0] *= -1
    return affine


GRIDS = {
    "isotropic": affine_of((4, 4, 4)),
    "anisotropic": affine_of((3, 3, 6)),
    "flipped": affine_of((4, 4, 4), flip=True),
    "oblique": affine_of((4, 3.5, 4), tilt=0.3),
    "oblique, flipped, anisotropic": affine_of((3, 3.5, 5), flip=True, tilt=-0.25),
}


def scan_grid(affine: np.ndarray) -> Geometry:
    shape = tuple(int(n) for n in np.ceil(200 / np.linalg.norm(affine[:3, :3], axis=0)))
    affine = affine.copy()
    affine[:3, 3] = np.array([3.0, -16.0, 5.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(shape, affine)


def blob(grid: Geometry, centre: np.ndarray, sigma_mm: float = 14.0) -> np.ndarray:
    positions = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    return np.exp(-((positions - centre) ** 2).sum(-1) / (2 * sigma_mm**2)).astype(np.float32)


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_a_map_returns_to_its_position_in_the_scan(affine: np.ndarray) -> None:
    scan, template, move = scan_grid(affine), target_grid(4.0), placement()
    centre = np.array([10.0, -20.0, 15.0])
    volume = Volume(blob(scan, centre), scan, "sub-01")
    there = to_target_grid(volume, template, move)
    back = to_scan_grid(there, template, scan, move, order=3)
    assert np.abs(back - volume.voxels).max() < 0.04
    peak = scan.to_world(np.unravel_index(back.argmax(), back.shape))
    assert np.linalg.norm(peak - centre) < max(scan.spacing)


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_positions_are_transformed_by_the_affine(affine: np.ndarray) -> None:
    scan, template, move = scan_grid(affine), target_grid(2.0), placement()
    centre = np.array([-12.0, 5.0, 20.0])
    moved = to_target_grid(Volume(blob(scan, centre), scan, "sub-01"), template, move)
    found = template.to_world(np.unravel_index(moved.argmax(), moved.shape))
    assert np.linalg.norm(found - (move @ [*centre, 1])[:3]) < 3.0


def test_nearest_neighbours_keep_the_values_of_labels() -> None:
    template, scan = target_grid(4.0), scan_grid(GRIDS["oblique"])
    labels = (blob(template, np.zeros(3)) > 0.5) * 3.0
    assert set(np.unique(to_scan_grid(labels, template, scan, placement(), order=0))) == {0.0, 3.0}


def test_the_same_grid_gives_the_same_voxels() -> None:
    grid = scan_grid(GRIDS["oblique"])
    voxels = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    assert np.allclose(resample(voxels, grid, grid, order=3), voxels, atol=1e-4)


def test_cubic_interpolation_stays_in_the_range_of_the_scan() -> None:
    fine, coarse = target_grid(3.0), target_grid(4.0)
    edges = (blob(coarse, np.zeros(3)) > 0.3).astype(np.float32)
    moved = resample(edges, coarse, fine, order=3)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_downsampling_averages() -> None:
    fine = Geometry((64, 64, 64), np.eye(4))
    noise = np.random.default_rng(0).normal(size=fine.shape).astype(np.float32)
    assert resample(noise, fine, world_grid(fine, 4.0, margin_mm=-8)).std() < 0.25


def test_a_crop_keeps_positions_in_millimetres() -> None:
    scan = scan_grid(GRIDS["oblique"])
    volume = Volume(blob(scan, np.array([10.0, -20.0, 15.0])), scan, "sub-01")
    part = crop(volume, box_around(volume.voxels > 0.5, margin=2))
    before = scan.to_world(np.unravel_index(volume.voxels.argmax(), scan.shape))
    after = part.geometry.to_world(np.unravel_index(part.voxels.argmax(), part.geometry.shape))
    assert np.allclose(before, after)


def test_a_matrix_that_cannot_be_inverted_is_an_error() -> None:
    with pytest.raises(InputError, match="invertible"):
        to_scan_grid(np.zeros((2, 2, 2)), target_grid(4.0), target_grid(4.0), np.zeros((4, 4)))


def test_antialiasing_can_be_switched_off() -> None:
    fine = Geometry((64, 64, 64), np.eye(4))
    noise = np.random.default_rng(0).normal(size=fine.shape).astype(np.float32)
    every_fourth = Geometry((16, 16, 16), np.diag([4.0, 4.0, 4.0, 1.0]))
    assert np.array_equal(resample(noise, fine, every_fourth, antialias=False), noise[::4, ::4, ::4])


def test_a_mask_is_kept_where_its_interpolation_is_at_least_one_half() -> None:
    fine = Geometry((4, 4, 4), np.eye(4))
    mask = np.zeros(fine.shape, dtype=bool)
    mask[:2] = True
    shifted = Geometry((3, 4, 4), np.array([[1.0, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert resample_mask(mask, fine, shifted)[:, 0, 0].tolist() == [True, True, False]
