from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomaly.core.results import Region, ScanScore
from anomaly.core.scan_result import ScanResult, TemplateVolumes
from anomaly.core.volume import Geometry
from tests.reports.conftest import run_dir, score, volumes
from tests.reports.factory import BLOBS, VOXEL_THRESHOLD

__all__ = ["run_dir", "score", "volumes"]

GRID = Geometry((4, 5, 6), np.diag([2.0, 2.0, 2.0, 1.0]))


def result() -> ScanResult:
    values = np.zeros(GRID.shape, dtype=np.float32)
    template = TemplateVolumes(values, values, values, values > 0, GRID)
    return ScanResult("sub-01_T1w", "kl", {"kl": 2.5, "combined": 1.0}, values, values > 0, GRID, template)


def test_the_declared_score_is_the_score() -> None:
    calibrated = replace(result(), p_values={"kl": 0.04, "combined": 0.5}, percentiles={"kl": 97.0})
    assert (calibrated.score, calibrated.p_value, calibrated.percentile) == (2.5, 0.04, 97.0)


def test_without_a_calibration_there_is_no_p_value() -> None:
    assert (result().p_value, result().percentile, result().flagged) == (None, None, None)


def test_a_calibration_without_the_declared_score_is_an_error() -> None:
    with pytest.raises(KeyError, match="kl"):
        _ = replace(result(), p_values={"combined": 0.5}).p_value


def test_the_nearest_voxel_lies_inside_the_grid() -> None:
    template = result().template
    assert template.nearest_index((2.2, 3.8, 5.9)) == (1, 2, 3)
    assert template.nearest_index((-50.0, 0.0, 500.0)) == (0, 0, 5)


@pytest.mark.slow
def test_the_outline_holds_the_regions_of_the_table_and_no_other_place(
    volumes: TemplateVolumes, score: ScanScore
) -> None:
    marked = volumes.marked(score.regions[:1], VOXEL_THRESHOLD)
    centre = np.array(BLOBS["sub-02_T1w"][0][0])
    distances = np.linalg.norm(volumes.geometry.to_world(np.argwhere(marked)) - centre, axis=1)
    assert marked.any()
    assert distances.max() < 12


def test_a_region_one_voxel_off_on_the_template_is_still_outlined(
    volumes: TemplateVolumes, score: ScanScore
) -> None:
    x, y, z = score.regions[0].mni_mm
    region = Region(1, 1.0, 7.0, 4.0, (x + 8.0, y, z), (0, 0, 0))
    assert volumes.marked((region,), VOXEL_THRESHOLD).any()
    assert not volumes.marked((region,), None).any()


def test_the_peak_is_where_the_evidence_is_highest(volumes: TemplateVolumes) -> None:
    assert np.allclose(volumes.peak_mm, BLOBS["sub-02_T1w"][0][0], atol=4.0)
