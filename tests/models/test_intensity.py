from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from anomaly.models.intensity import IntensitySettings, IntensityThreshold
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of


def test_the_intensity_threshold_is_the_distance_from_the_median(tmp_path: Path) -> None:
    model = IntensityThreshold(IntensitySettings(), GRID)
    fit(model, healthy_cohort(5), [], FitRun(tmp_path))
    images, mask = images_of(*healthy_scan(3), model.view)
    medians = [np.median(v[m]) for v, m in healthy_cohort(5).volumes]
    assert abs(float(model.median) - np.median(medians)) < 1e-3
    torch.testing.assert_close(model.evidence(images, mask).maps["residual"], (images - model.median) * mask)
