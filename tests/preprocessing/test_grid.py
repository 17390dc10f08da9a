import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import InputError
from anomaly.core.volume import Geometry, Volume
from anomaly.preprocessing.grid import box_around, crop, resample, to_scan_grid, to_target_grid, world_grid
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
    places = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    return np.exp(-((places - centre) ** 2).sum(-1) / (2 * sigma_mm**2)).astype(np.float32)


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_a_map_returns_to_where_it_was_in_the_scan(affine: np.ndarray) -> None:
    scan, template, move = scan_grid(affine), target_grid(4.0), placement()
    centre = np.array([10.0, -20.0, 15.0])
    volume = Volume(blob(scan, centre), scan, "sub-01")
    there = to_target_grid(volume, template, move)
    back = to_scan_grid(there, template, scan, move, order=3)
    assert np.abs(back - volume.voxels).max() < 0.04
    peak = scan.to_world(np.unravel_index(back.argmax(), back.shape))
    assert np.linalg.norm(peak - centre) < max(scan.spacing)


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_a_place_in_the_scan_lands_where_the_matrix_says(affine: np.ndarray) -> None:
    scan, template, move = scan_grid(affine), target_grid(2.0), placement()
    centre = np.array([-12.0, 5.0, 20.0])
    moved = to_target_grid(Volume(blob(scan, centre), scan, "sub-01"), template, move)
    found = template.to_world(np.unravel_index(moved.argmax(), moved.shape))
    assert np.linalg.norm(found - (move @ [*centre, 1])[:3]) < 3.0


def test_labels_stay_labels_with_nearest_neighbours() -> None:
    template, scan = target_grid(4.0), scan_grid(GRIDS["oblique"])
    labels = (blob(template, np.zeros(3)) > 0.5) * 3.0
    assert set(np.unique(to_scan_grid(labels, template, scan, placement(), order=0))) == {0.0, 3.0}


def test_the_same_grid_gives_the_same_voxels() -> None:
    grid = scan_grid(GRIDS["oblique"])
    voxels = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    assert np.allclose(resample(voxels, grid, grid, order=3), voxels, atol=1e-4)


def test_cubic_interpolation_invents_no_values_beyond_the_scans() -> None:
    fine, coarse = target_grid(3.0), target_grid(4.0)
    edges = (blob(coarse, np.zeros(3)) > 0.3).astype(np.float32)
    moved = resample(edges, coarse, fine, order=3)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_coarser_sampling_averages_instead_of_picking() -> None:
    fine = Geometry((64, 64, 64), np.eye(4))
    noise = np.random.default_rng(0).normal(size=fine.shape).astype(np.float32)
    assert resample(noise, fine, world_grid(fine, 4.0, margin_mm=-8)).std() < 0.25


def test_a_crop_stays_where_it_was_in_the_world() -> None:
    scan = scan_grid(GRIDS["oblique"])
    volume = Volume(blob(scan, np.array([10.0, -20.0, 15.0])), scan, "sub-01")
    part = crop(volume, box_around(volume.voxels > 0.5, margin=2))
    before = scan.to_world(np.unravel_index(volume.voxels.argmax(), scan.shape))
    after = part.geometry.to_world(np.unravel_index(part.voxels.argmax(), part.geometry.shape))
    assert np.allclose(before, after)


def test_a_matrix_that_cannot_be_inverted_is_an_error() -> None:
    with pytest.raises(InputError, match="invertible"):
        to_scan_grid(np.zeros((2, 2, 2)), target_grid(4.0), target_grid(4.0), np.zeros((4, 4)))
