from __future__ import annotations

import numpy as np

from anomaly.core.scan_result import TemplateVolumes
from anomaly.core.volume import Geometry
from anomaly.reports.panels import AXIAL, CORONAL, SAGITTAL, crop_to_foreground, overlay, slice_of
from anomaly.runs.reader import Display

GRID = Geometry((20, 22, 18), np.array([[4.0, 0, 0, -38], [0, 4, 0, -42], [0, 0, 4, -34], [0, 0, 0, 1]]))


def _with_a_point_at(point_mm: tuple[float, float, float]) -> np.ndarray:
    values = np.zeros(GRID.shape, dtype=np.float32)
    values[tuple(np.round(GRID.to_index(point_mm)).astype(int))] = 1
    return values


def test_the_patients_right_is_on_the_left_of_axial_and_coronal_pictures() -> None:
    right = (26.0, 2.0, 2.0)
    for plane in (AXIAL, CORONAL):
        picture, extent = slice_of(_with_a_point_at(right), GRID, plane, right)
        (_, column), *_ = np.argwhere(picture)
        assert column < picture.shape[1] / 2
        assert extent[0] + 4 * (column + 0.5) == -26.0
        assert (plane.left, plane.right) == ("R", "L")


def test_the_front_is_on_the_right_of_sagittal_pictures_and_the_top_is_up() -> None:
    front = (2.0, 30.0, 22.0)
    picture, extent = slice_of(_with_a_point_at(front), GRID, SAGITTAL, front)
    (row, column), *_ = np.argwhere(picture)
    assert (extent[0] + 4 * (column + 0.5), extent[2] + 4 * (row + 0.5)) == (30.0, 22.0)
    assert (SAGITTAL.left, SAGITTAL.right) == ("P", "A")


def test_a_place_outside_the_grid_shows_the_edge() -> None:
    picture, _ = slice_of(np.ones(GRID.shape), GRID, AXIAL, (0.0, 0.0, 500.0))
    assert picture.all()


def test_one_value_has_one_colour_in_every_scan() -> None:
    display = Display(8.0, 3.2, 1.0)
    weak, strong = overlay(np.array([1.0, 4.0]), display), overlay(np.array([4.0, 40.0]), display)
    assert np.array_equal(weak[1], strong[0])


def test_evidence_is_solid_from_the_voxel_threshold_on() -> None:
    alpha = overlay(np.array([0.0, 3.19, 3.2, 8.0]), Display(8.0, 3.2, 1.0))[:, 3]
    assert alpha[0] == 0
    assert alpha[1] < 0.5 < alpha[2] == alpha[3]


def test_cutting_to_the_brain_moves_nothing_in_the_world(volumes: TemplateVolumes) -> None:
    cut = crop_to_foreground(volumes, volumes.mask, Display(8.0, 3.2, 1.0)).volumes
    assert cut.scan.size < volumes.scan.size
    assert cut.peak_mm == volumes.peak_mm
