from __future__ import annotations

import numpy as np
import pytest

from anomaly.bundle.store import load_bundle
from anomaly.core.image_views import Array
from anomaly.core.volume import Geometry, Modality, Volume
from pipelines.benchmark.studies.refusals import DISEASE, WRONG, half_turn, result_row
from tests.pipelines.conftest import Trained

GRID = Geometry((20, 24, 18), np.array([[8.0, 0, 0, -76], [0, 8.0, 0, -100], [0, 0, 8.0, -68], [0, 0, 0, 1]]))


@pytest.fixture
def scan() -> Volume:
    voxels = np.random.default_rng(0).uniform(50, 100, GRID.shape).astype(np.float32)
    voxels[:2] = 0
    return Volume(voxels, GRID, "sub-1", Modality.T1W)


@pytest.fixture
def position() -> Array:
    return GRID.to_world(np.moveaxis(np.indices(GRID.shape), 0, -1).reshape(-1, 3)).reshape(*GRID.shape, 3)


@pytest.mark.parametrize("name", [*DISEASE, *WRONG])
def test_every_change_is_repeatable_and_changes_the_scan(name: str, scan: Volume, position: Array) -> None:
    change = (DISEASE | WRONG)[name]
    once, again = change(scan, position), change(scan, position)
    assert once.shape == scan.voxels.shape
    assert np.array_equal(once, again)
    assert not np.array_equal(once, scan.voxels)


def test_disease_leaves_the_right_hemisphere_alone(scan: Volume, position: Array) -> None:
    right = position[..., 0] > 0
    for change in DISEASE.values():
        assert np.array_equal(change(scan, position)[right], scan.voxels[right])


def test_two_half_turns_are_none(scan: Volume) -> None:
    turned = scan.with_voxels(half_turn(scan))
    assert np.array_equal(half_turn(turned), scan.voxels)
    assert np.array_equal(turned.voxels, scan.voxels[:, ::-1, ::-1])


def test_a_refused_scan_has_what_was_found_as_its_result(trained: Trained, scan: Volume) -> None:
    flat = scan.with_voxels(np.ones_like(scan.voxels))
    row = result_row(load_bundle(trained.model), "constant", "refused", flat)
    assert (row["scan"], row["should be"]) == ("constant", "refused")
    assert str(row["result"]).startswith("refused: ")
    assert "similarity" not in row
