from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from anomaly.core.errors import TrainingError
from anomaly.core.volume import Geometry
from anomaly.models.components.closed_form import check_cohort, principal_components
from tests.models.factories import GRID, healthy_cohort


@pytest.mark.parametrize("n", [9, 40])  # fewer and more scans than their 24 voxels
def test_the_components_of_few_and_of_many_scans_are_those_of_sklearn(n: int) -> None:
    scans = torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) * torch.linspace(3, 1, 24)
    mean, components, variance = principal_components(scans.clone(), 4)
    theirs = PCA(4, svd_solver="full").fit(scans.numpy())
    assert np.allclose(mean.numpy(), theirs.mean_, atol=1e-5)
    assert np.allclose(np.abs(components.numpy() @ theirs.components_.T), np.eye(4), atol=1e-3)
    assert np.allclose(variance.numpy(), theirs.explained_variance_, rtol=1e-4)


def test_too_few_scans_and_another_grid_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"found 2 healthy scan\(s\) to train 'atlas' on; expected at least 3"):
        check_cohort(healthy_cohort(2), GRID, "atlas", min_scans=3)
    with pytest.raises(TrainingError, match="the cohort's grid has shape"):
        check_cohort(healthy_cohort(3), Geometry((4, 4, 4), np.eye(4)), "atlas", min_scans=3)
    check_cohort(healthy_cohort(3), GRID, "atlas", min_scans=3)
