from __future__ import annotations

import numpy as np
import pytest

from anomaly.core.errors import InputError
from pipelines.validation.baselines.sklearn_detectors import EstimatorKind, EstimatorSettings, FittedEstimator


def blob(n: int, centre: float, seed: int) -> np.ndarray:
    """Return images ``(n, 4, 4)`` around one grey level."""
    return np.random.default_rng(seed).normal(centre, 0.05, (n, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("components", [0, 3])
@pytest.mark.parametrize("kind", ["knn", "isolation_forest", "one_class_svm"])
def test_images_far_from_the_normal_ones_have_higher_scores(kind: EstimatorKind, components: int) -> None:
    fitted = FittedEstimator(EstimatorSettings(kind=kind, components=components), blob(100, 0.3, seed=0), seed=0)
    near, far = fitted.score(blob(30, 0.3, seed=1)), fitted.score(blob(30, 0.8, seed=2))
    assert near.shape == (30,)
    assert far.min() > np.median(near)


def test_knn_scores_the_mean_distance_to_the_nearest() -> None:
    normal = np.array([0, 1, 5], dtype=np.float32)[:, None, None]
    fitted = FittedEstimator(EstimatorSettings(kind="knn", neighbours=2), normal, seed=0)
    assert fitted.score(np.array([[[3.0]]], dtype=np.float32)) == pytest.approx([2.0])


@pytest.mark.parametrize("settings", [{"neighbours": 10}, {"components": 10}])
def test_too_few_images_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="found 10 normal images; knn expected 11 or more"):
        FittedEstimator(
            EstimatorSettings.model_validate({"kind": "knn", **settings}), blob(10, 0.3, seed=0), seed=0
        )
