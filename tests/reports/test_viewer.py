from __future__ import annotations

import json
import re

import numpy as np
import pytest

from anomaly.core.scan_result import TemplateVolumes
from anomaly.reports.viewer import viewer_html
from anomaly.runs.reader import RunInfo
from tests.reports.pages import external_addresses


@pytest.mark.parametrize("spacing", [3.0, 6.0])
def test_the_viewer_starts_at_the_place_and_says_the_right_millimetres(
    run: RunInfo, volumes: TemplateVolumes, spacing: float
) -> None:
    point = (30.0, 34.0, 12.0)
    document, _ = viewer_html(volumes, run.display, point, spacing)
    found = re.search(r"brainsprite\((\{.*\})\);", document)
    assert found
    parameters = json.loads(found.group(1))
    # What the script prints: affine @ (slice + 1). Its slices count from the patient's right: x falls along them.
    index = np.array([parameters["numSlice"][axis] for axis in "XYZ"])
    affine = np.array(parameters["affine"])
    assert np.allclose((affine @ [*(index + 1), 1])[:3], point, atol=max(spacing, 4.0) / 2)
    assert affine[0, 0] < 0
    assert index[0] < parameters["nbSlice"]["X"] / 2
    assert parameters["radiological"] is True


def test_the_viewer_shares_the_fixed_colour_scale(run: RunInfo, volumes: TemplateVolumes) -> None:
    document, _ = viewer_html(volumes, run.display, volumes.peak_mm)
    assert f'"max": {run.display.evidence_max}' in document


def test_the_viewer_loads_and_links_nothing(run: RunInfo, volumes: TemplateVolumes) -> None:
    assert external_addresses(viewer_html(volumes, run.display, volumes.peak_mm)[0]) == []
