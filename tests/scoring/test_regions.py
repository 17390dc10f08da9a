import numpy as np
import pytest

from anomaly.core.volume import Geometry
from anomaly.scoring.regions import find_regions, flagged_mask

GRID = Geometry((20, 20, 20), np.array([[-2.0, 0, 0, 19], [0, 2, 0, -19], [0, 0, 2, -19], [0, 0, 0, 1]]))


def two_blobs() -> np.ndarray:
    evidence = np.zeros(GRID.shape, dtype=np.float32)
    evidence[2:6, 2:6, 2:6] = 5
    evidence[3, 3, 3] = 6
    evidence[12:15, 12:15, 12:15] = 9
    evidence[18, 18, 18] = 20
    return evidence


def test_regions_smaller_than_the_limit_are_dropped() -> None:
    mask = flagged_mask(two_blobs(), 4.0, GRID, min_region_ml=0.05)

    assert not mask[18, 18, 18]
    assert mask.sum() == 64 + 27


def test_regions_are_listed_by_peak_with_volume_position_and_polarity() -> None:
    evidence = two_blobs()
    mask = flagged_mask(evidence, 4.0, GRID, min_region_ml=0.05)
    template_from_scan = np.eye(4)
    template_from_scan[2, 3] = 10.0
    first, second = find_regions(mask, evidence, -evidence, GRID, template_from_scan)

    assert (first.label, second.label) == (1, 2)
    assert first.volume_ml == pytest.approx(27 * 0.008)
    assert second.voxel == (3, 3, 3)
    assert second.mni_mm == (13.0, -13.0, -3.0)
    assert second.peak == 6
    assert second.mean == pytest.approx((63 * 5 + 6) / 64)
    assert first.polarity == "dark"


def test_an_empty_mask_has_no_regions() -> None:
    empty = np.zeros(GRID.shape, dtype=bool)

    assert find_regions(empty, two_blobs(), two_blobs(), GRID, np.eye(4)) == ()


def test_a_region_whose_evidence_is_mostly_of_structure_says_so() -> None:
    evidence = two_blobs()
    mask = flagged_mask(evidence, 4.0, GRID, min_region_ml=0.05)
    structure = np.where(np.indices(GRID.shape)[0] < 10, 0.8 * evidence, 0.2 * evidence).astype(np.float32)
    regions = find_regions(mask, evidence, -evidence, GRID, np.eye(4), structure)

    assert [region.polarity for region in regions] == ["dark", "structure"]
