"""Detectors of scikit-learn, to compare the model families with: what can be said without a model of images.

``knn`` is the mean distance to the nearest normal pictures; ``isolation_forest`` and ``one_class_svm`` give what
their ``score_samples`` gives, with the sign turned so that larger = more anomalous. They see pixels, or pixels
projected on the leading principal components of the normal pictures and divided by the SD along each of them.

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
from pipelines.validation.thresholds import ExaminedSettings

Floats = npt.NDArray[np.float64]
Kind = Literal["knn", "isolation_forest", "one_class_svm"]


class EstimatorSettings(Settings):
    """Which detector, and what it sees."""

    kind: Kind
    components: int = Field(0, ge=0, description="principal components it sees, each of SD 1; 0 = it sees pixels")
    neighbours: int = Field(5, ge=1, description="knn: how many of the nearest normal pictures")
    trees: int = Field(200, ge=1, description="isolation_forest: how many")
    nu: float = Field(0.05, gt=0, le=1, description="one_class_svm: largest share of normal pictures left outside")
    gamma: float = Field(
        1.0, gt=0, description="one_class_svm: 1 / (number of features · their variance), times this, is its γ"
    )


class EstimatorTrial(ExaminedSettings):
    """A detector of scikit-learn, what it is examined for, and the bars."""

    estimator: EstimatorSettings

    @property
    def family(self) -> str:
        """Name of the detector, which is that of its score."""
        return self.estimator.kind


class FittedEstimator:
    """A detector that has seen normal pictures.

    Parameters
    ----------
    settings
        Which one.
    normal
        ``(N, H, W)`` pictures to learn from.
    seed
        Of its random choices.

    Raises
    ------
    InputError
        If there are too few pictures for the neighbours or components.
    """

    def __init__(self, settings: EstimatorSettings, normal: FloatArray, seed: int) -> None:
        fewest = max(settings.neighbours, settings.components) + 1
        if len(normal) < fewest:
            raise InputError(f"found {len(normal)} normal pictures; {settings.kind} expected {fewest} or more")
        self.settings = settings
        self.whitening = _whitening(settings.components, _rows(normal), seed)
        seen = self._seen(normal)
        self.estimator = _created(settings, seed, seen).fit(seen)

    def score(self, pictures: FloatArray) -> Floats:
        """Return how anomalous each of the pictures ``(N, H, W)`` is ``(N,)``."""
        seen = self._seen(pictures)
        if self.settings.kind == "knn":
            distances, _ = self.estimator.kneighbors(seen)
            return np.asarray(distances.mean(axis=1), dtype=np.float64)
        return np.asarray(-self.estimator.score_samples(seen), dtype=np.float64)

    def _seen(self, pictures: FloatArray) -> Floats:
        rows = _rows(pictures)
        return rows if self.whitening is None else np.asarray(self.whitening.transform(rows), dtype=np.float64)


def _rows(pictures: FloatArray) -> Floats:
    return pictures.reshape(len(pictures), -1).astype(np.float64)


def _whitening(components: int, normal: Floats, seed: int) -> Any:
    if components == 0:
        return None
    from sklearn.decomposition import PCA

    return PCA(components, whiten=True, random_state=seed).fit(normal)


def _created(settings: EstimatorSettings, seed: int, seen: Floats) -> Any:
    match settings.kind:
        case "knn":
            from sklearn.neighbors import NearestNeighbors

            return NearestNeighbors(n_neighbors=settings.neighbours)
        case "isolation_forest":
            from sklearn.ensemble import IsolationForest

            return IsolationForest(n_estimators=settings.trees, random_state=seed)
        case "one_class_svm":
            from sklearn.svm import OneClassSVM

            scale = float(seen.var()) * seen.shape[1]
            return OneClassSVM(nu=settings.nu, gamma=settings.gamma / max(scale, 1e-12))
