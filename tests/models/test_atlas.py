from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from anomaly.models.atlas import Atlas, AtlasSettings
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of


def test_the_atlas_is_the_voxelwise_mean_and_sd(tmp_path: Path) -> None:
    cohort = healthy_cohort(6)
    atlas = Atlas(AtlasSettings(smooth_mm=0, floor=1e-9), GRID)
    fit(atlas, cohort, [], FitRun(tmp_path))
    voxels = np.stack([v for v, _ in cohort.volumes])
    in_every_mask = np.stack([m for _, m in cohort.volumes]).all(axis=0)
    assert np.allclose(atlas.mean.numpy()[in_every_mask], voxels.mean(0)[in_every_mask], atol=1e-5)
    assert np.allclose(atlas.sd.numpy()[in_every_mask], voxels.std(0, ddof=1)[in_every_mask], atol=1e-5)


def test_the_atlas_gives_signed_standard_deviations(tmp_path: Path) -> None:
    atlas = Atlas(AtlasSettings(), GRID)
    fit(atlas, healthy_cohort(6), [], FitRun(tmp_path))
    images, mask = images_of(*healthy_scan(50), atlas.view)
    moved = images + 3 * atlas.sd * mask
    difference = atlas.evidence(moved, mask).maps["residual"] - atlas.evidence(images, mask).maps["residual"]
    torch.testing.assert_close(difference[mask], torch.full_like(difference[mask], 3.0), rtol=1e-3, atol=1e-3)
