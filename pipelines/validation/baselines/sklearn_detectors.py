"""Detectors of scikit-learn as baselines for the model families.

The score of ``knn`` is the mean distance to the nearest normal images; that of ``isolation_forest`` and
``one_class_svm`` is the negative of their ``score_samples``, so that larger = more anomalous. Their input is
pixels, or the whitened leading principal components of the normal images.

Source: Ramaswamy, Rastogi & Shim 2000 (distance to the k nearest); Liu, Ting & Zhou 2008, "Isolation Forest";
Schölkopf et al. 2001, "Estimating the Support of a High-Dimensional Distribution".
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from anomaly.core.config import Settings
from anomaly.core.errors import InputError
from anomaly.core.volume import FloatArray
from pipelines.validation.thresholds import CheckedEntry

Floats = npt.NDArray[np.float64]
EstimatorKind = Literal["knn", "isolation_forest", "one_class_svm"]


class EstimatorSettings(Settings):
    """A detector of scikit-learn, and its input."""

    kind: EstimatorKind = Field(description="which detector")
    components: int = Field(0, ge=0, description="whitened principal components as input; 0 = pixels")
    neighbours: int = Field(5, ge=1, description="knn: number of nearest normal images")
    trees: int = Field(200, ge=1, description="isolation_forest: number of trees")
    nu: float = Field(
        0.05, gt=0, le=1, description="one_class_svm: largest share of normal images outside the boundary"
    )
    gamma: float = Field(
        1.0, gt=0, description="one_class_svm: γ in units of 1 / (number of features · their variance)"
    )


class EstimatorEntry(CheckedEntry):
    """A detector of scikit-learn under test: its settings, checks and thresholds."""

    estimator: EstimatorSettings

    @property
    def family(self) -> str:
        """Name of the detector, which is that of its score."""
        return self.estimator.kind


class FittedEstimator:
    """A detector fitted to normal images.

    Parameters
    ----------
    settings
        Which detector, and its settings.
    normal
        ``(N, H, W)`` images to fit.
    seed
        Seed of its random numbers.

    Raises
    ------
    InputError
        If there are too few images for the neighbours or components.
    """

    def __init__(self, settings: EstimatorSettings, normal: FloatArray, seed: int) -> None:
        fewest = max(settings.neighbours, settings.components) + 1
        if len(normal) < fewest:
            raise InputError(f"found {len(normal)} normal images; {settings.kind} expected {fewest} or more")
        self.settings = settings
        self.whitening = _whitening(settings.components, _rows(normal), seed)
        inputs = self._inputs(normal)
        self.estimator = _created(settings, seed, inputs).fit(inputs)

    def score(self, images: FloatArray) -> Floats:
        """Return how anomalous each of the images ``(N, H, W)`` is ``(N,)``."""
        inputs = self._inputs(images)
        if self.settings.kind == "knn":
            distances, _ = self.estimator.kneighbors(inputs)
            return np.asarray(distances.mean(axis=1), dtype=np.float64)
        return np.asarray(-self.estimator.score_samples(inputs), dtype=np.float64)

    def _inputs(self, images: FloatArray) -> Floats:
        rows = _rows(images)
        return rows if self.whitening is None else np.asarray(self.whitening.transform(rows), dtype=np.float64)


def _rows(images: FloatArray) -> Floats:
    return images.reshape(len(images), -1).astype(np.float64)


def _whitening(components: int, normal: Floats, seed: int) -> Any:
    if components == 0:
        return None
    from sklearn.decomposition import PCA

    return PCA(components, whiten=True, random_state=seed).fit(normal)


def _created(settings: EstimatorSettings, seed: int, model_inputs: Floats) -> Any:
    match settings.kind:
        case "knn":
            from sklearn.neighbors import NearestNeighbors

            return NearestNeighbors(n_neighbors=settings.neighbours)
        case "isolation_forest":
            from sklearn.ensemble import IsolationForest

            return IsolationForest(n_estimators=settings.trees, random_state=seed)
        case "one_class_svm":
            from sklearn.svm import OneClassSVM

            scale = float(model_inputs.var()) * model_inputs.shape[1]
            return OneClassSVM(nu=settings.nu, gamma=settings.gamma / max(scale, 1e-12))
