from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from anomaly.core.errors import TrainingError
from anomaly.models.atlas import Atlas, AtlasSettings
from anomaly.models.components.closed_form import principal_components
from anomaly.models.intensity import IntensitySettings, IntensityThreshold
from anomaly.models.pca import PCASettings, PrincipalComponents
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from tests.models.factories import GRID, MemoryCohort, healthy_cohort, healthy_scan, images_of


def test_the_atlas_is_the_voxelwise_mean_and_sd(tmp_path: Path) -> None:
    cohort = healthy_cohort(6)
    atlas = Atlas(AtlasSettings(smooth_mm=0, floor=1e-9), GRID)
    fit(atlas, cohort, [], FitRun(tmp_path))
    voxels = np.stack([v for v, _ in cohort.volumes])
    everywhere = np.stack([m for _, m in cohort.volumes]).all(axis=0)
    assert np.allclose(atlas.mean.numpy()[everywhere], voxels.mean(0)[everywhere], atol=1e-5)
    assert np.allclose(atlas.sd.numpy()[everywhere], voxels.std(0, ddof=1)[everywhere], atol=1e-5)


def test_the_atlas_gives_signed_standard_deviations(tmp_path: Path) -> None:
    atlas = Atlas(AtlasSettings(), GRID)
    fit(atlas, healthy_cohort(6), [], FitRun(tmp_path))
    images, mask = images_of(*healthy_scan(50), atlas.view)
    moved = images + 3 * atlas.sd * mask
    difference = atlas.evidence(moved, mask).maps["residual"] - atlas.evidence(images, mask).maps["residual"]
    torch.testing.assert_close(difference[mask], torch.full_like(difference[mask], 3.0), rtol=1e-3, atol=1e-3)


def test_the_components_are_those_of_sklearn(tmp_path: Path) -> None:
    cohort = healthy_cohort(12)
    ours = PrincipalComponents(PCASettings(components=5), GRID)
    fit(ours, cohort, [], FitRun(tmp_path))
    theirs = PCA(5, svd_solver="full").fit(np.stack([v.ravel() for v, _ in cohort.volumes]))
    alignment = np.abs(ours.components.numpy() @ theirs.components_.T)
    assert np.allclose(alignment, np.eye(5), atol=1e-2)
    assert np.allclose(ours.variance.numpy(), theirs.explained_variance_, rtol=1e-3)


@pytest.mark.parametrize("n", [9, 40])  # fewer and more scans than their 24 voxels
def test_the_components_of_few_and_of_many_scans_are_those_of_sklearn(n: int) -> None:
    scans = torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) * torch.linspace(3, 1, 24)
    mean, components, variance = principal_components(scans.clone(), 4)
    theirs = PCA(4, svd_solver="full").fit(scans.numpy())
    assert np.allclose(mean.numpy(), theirs.mean_, atol=1e-5)
    assert np.allclose(np.abs(components.numpy() @ theirs.components_.T), np.eye(4), atol=1e-3)
    assert np.allclose(variance.numpy(), theirs.explained_variance_, rtol=1e-4)


def test_a_scan_inside_the_subspace_has_no_residual(tmp_path: Path) -> None:
    cohort = healthy_cohort(6)
    everywhere = np.ones(GRID.shape, dtype=bool)
    cohort = MemoryCohort([(voxels, everywhere) for voxels, _ in cohort.volumes])
    model = PrincipalComponents(PCASettings(components=5), GRID)
    fit(model, cohort, [], FitRun(tmp_path))
    evidence = model.evidence(*images_of(*cohort[2], model.view))
    assert evidence.maps["residual"].abs().max() < 1e-3
    assert evidence.terms["hotelling"] > 0


def test_more_components_than_scans_are_refused(tmp_path: Path) -> None:
    model = PrincipalComponents(PCASettings(components=6), GRID)
    with pytest.raises(TrainingError, match=r"found 6 .*expected at least 7"):
        fit(model, healthy_cohort(6), [], FitRun(tmp_path))


def test_a_cohort_of_copies_is_refused(tmp_path: Path) -> None:
    model = PrincipalComponents(PCASettings(components=2), GRID)
    with pytest.raises(TrainingError, match="duplicates"):
        fit(model, MemoryCohort([healthy_scan(0)] * 5), [], FitRun(tmp_path))


def test_the_intensity_threshold_is_the_distance_from_the_median(tmp_path: Path) -> None:
    model = IntensityThreshold(IntensitySettings(), GRID)
    fit(model, healthy_cohort(5), [], FitRun(tmp_path))
    images, mask = images_of(*healthy_scan(3), model.view)
    medians = [np.median(v[m]) for v, m in healthy_cohort(5).volumes]
    assert abs(float(model.median) - np.median(medians)) < 1e-3
    torch.testing.assert_close(model.evidence(images, mask).maps["residual"], (images - model.median) * mask)
