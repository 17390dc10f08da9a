from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from anomaly.core.errors import TrainingError
from anomaly.models.pca import PCASettings, PrincipalComponents
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from tests.models.factories import GRID, MemoryCohort, healthy_cohort, healthy_scan, images_of


def test_the_components_are_those_of_sklearn(tmp_path: Path) -> None:
    cohort = healthy_cohort(12)
    ours = PrincipalComponents(PCASettings(components=5), GRID)
    fit(ours, cohort, [], FitRun(tmp_path))
    theirs = PCA(5, svd_solver="full").fit(np.stack([v.ravel() for v, _ in cohort.volumes]))
    alignment = np.abs(ours.components.numpy() @ theirs.components_.T)
    assert np.allclose(alignment, np.eye(5), atol=1e-2)
    assert np.allclose(ours.variance.numpy(), theirs.explained_variance_, rtol=1e-3)


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
