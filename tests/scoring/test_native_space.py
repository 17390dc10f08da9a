from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.volume import Geometry
from anomaly.scoring.native_space import in_scan_space
from anomaly.scoring.scorer import ScoredVolume

TEMPLATE = Geometry((20, 22, 18), np.diag([4.0, 4.0, 4.0, 1.0]))
SCAN = Geometry((30, 28, 33), np.array([[-3.0, 0, 0, 80], [0, 0, 3.0, -4], [0, 2.5, 0, 2], [0, 0, 0, 1.0]]))
SHIFT = np.array([[1, 0, 0, 4.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.fixture
def scored() -> ScoredVolume:
    """Return a volume with one dark block of evidence 5, and 1 elsewhere."""
    evidence = np.ones(TEMPLATE.shape, dtype=np.float32)
    evidence[8:13, 9:14, 7:11] = 5
    return ScoredVolume(evidence, -evidence, evidence, evidence > 0, {})


def test_evidence_is_resampled_to_the_grid_of_the_scan(scored: ScoredVolume) -> None:
    native = in_scan_space(scored, TEMPLATE, SCAN, SHIFT, None, 0.0)
    i, j, k = np.unravel_index(native.evidence.argmax(), SCAN.shape)
    in_template = SHIFT @ np.append(SCAN.to_world((i, j, k)), 1.0)

    assert native.evidence.shape == SCAN.shape
    assert (np.abs(in_template[:3] - [40, 44, 34]) < 12).all()


def test_without_a_threshold_nothing_is_flagged(scored: ScoredVolume) -> None:
    native = in_scan_space(scored, TEMPLATE, SCAN, SHIFT, None, 0.0)
    assert not native.flagged.any()
    assert native.regions == ()


def test_a_flagged_region_has_its_volume_position_and_polarity(scored: ScoredVolume) -> None:
    native = in_scan_space(scored, TEMPLATE, SCAN, SHIFT, 3.0, 0.0)
    (region,) = native.regions

    assert native.flagged[region.voxel]
    assert region.polarity == "dark"
    assert region.volume_ml == pytest.approx(native.flagged.sum() * SCAN.voxel_ml)
    assert region.volume_ml == pytest.approx(5 * 5 * 4 * 0.064, rel=0.2)


def test_smaller_regions_than_the_limit_are_dropped(scored: ScoredVolume) -> None:
    assert in_scan_space(scored, TEMPLATE, SCAN, SHIFT, 3.0, min_region_ml=20.0).regions == ()
