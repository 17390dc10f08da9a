"""Naive Bayes as a model under test: it samples images and, for pixels, gives the −ln P of each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from anomaly.core.errors import ConfigError
from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import FloatArray, Geometry
from anomaly.evaluation.categorical import Floats
from anomaly.models.base import ClosedFormDetector, Evidence, ModelSettings, apply_mask
from pipelines.validation.baselines.naive_bayes import FeatureNaiveBayes, PixelNaiveBayes
from pipelines.validation.datasets.avatars.dataset import Avatars
from pipelines.validation.datasets.avatars.mosaic import mosaic, to_rgb
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.labelled_dataset import LabelledImages


class FeatureModel:
    """Images of avatars whose attributes are sampled independently.

    Parameters
    ----------
    settings
        Gives α.
    avatars
        The observed avatars, and the image of every combination.
    """

    family: ClassVar[str] = "naive Bayes of features"

    def __init__(self, settings: NaiveBayesSettings, avatars: Avatars) -> None:
        self.avatars = avatars
        self.attributes = FeatureNaiveBayes.fit(avatars.observed, settings.alpha)

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` images ``(n, 1, H, W)``."""
        del covariates
        numpy_rng = _numpy_rng(rng)
        rows = np.stack([numpy_rng.choice(len(p), size=n, p=p) for p in self.attributes.theta], axis=1)
        return torch.from_numpy(self.avatars.image_bank.mosaics(rows))[:, None]


class PixelModel(ClosedFormDetector):
    """Images whose pixels and channels are sampled independently.

    Attributes
    ----------
    theta
        ``(H / 2, W / 2, 3, levels)`` probability of each grey level of the colours behind a mosaic.
    """

    family: ClassVar[str] = "naive Bayes of pixels"
    Settings: ClassVar[type[ModelSettings]] = ModelSettings
    theta: Tensor

    def __init__(self, settings: NaiveBayesSettings, grid: Geometry) -> None:
        super().__init__(ModelSettings(family=self.family), grid)
        self.naive = settings
        height, width = grid.shape[0] // 2, grid.shape[1] // 2
        uniform = torch.full((height, width, 3, settings.levels), 1 / settings.levels, dtype=torch.float64)
        self.register_buffer("theta", uniform)

    def fit_closed_form(self, train: VolumeSource) -> None:
        """Count grey levels."""
        pixels = np.stack([train[index][0][..., 0] for index in range(len(train))])
        fitted = PixelNaiveBayes.fit(to_rgb(pixels), self.naive.levels, self.naive.alpha)
        self.theta = torch.from_numpy(fitted.theta)

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the map ``nll``, −ln P of each colour in nats, and the mean image as the reconstruction."""
        del covariates
        rgb = to_rgb(images[:, 0].numpy())
        nll = torch.from_numpy(_to_mosaic(self.fitted().negative_log_likelihood(rgb)))[:, None]
        mean = (self.theta * torch.linspace(0, 255, self.theta.shape[-1])).sum(dim=-1).numpy()
        expected = torch.from_numpy(mosaic(mean[None]))[:, None].expand_as(images)
        return Evidence({"nll": apply_mask(nll, mask)}, apply_mask(expected, mask))

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` images ``(n, 1, H, W)``."""
        del covariates
        return torch.from_numpy(mosaic(self.fitted().sample(n, _numpy_rng(rng))))[:, None]

    def fitted(self) -> PixelNaiveBayes:
        """Return the fitted model."""
        return PixelNaiveBayes(self.theta.numpy())


def fit_naive_bayes(
    settings: NaiveBayesSettings, images: LabelledImages, avatars: Avatars | None
) -> FeatureModel | PixelModel:
    """Fit naive Bayes: of features, to the fifty observed avatars; of pixels, to images.

    Raises
    ------
    ConfigError
        If the dataset is not avatars.
    """
    if avatars is None:
        raise ConfigError("naive_bayes is for avatars; use it with the dataset avatars")
    if settings.of == "features":
        return FeatureModel(settings, avatars)
    model = PixelModel(settings, images.grid)
    model.fit_closed_form(images)
    return model


def _to_mosaic(values: Floats) -> FloatArray:
    """Return values of the colours ``(N, H, W, 3)`` in a mosaic ``(N, 2H, 2W)``; 0 in place of the mean."""
    n, h, w, _ = values.shape
    four = np.concatenate([values, np.zeros((n, h, w, 1))], axis=-1)
    blocks = four.reshape(n, h, w, 2, 2).transpose(0, 1, 3, 2, 4).reshape(n, 2 * h, 2 * w)
    return np.asarray(blocks, dtype=np.float32)


def _numpy_rng(rng: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**31, (1,), generator=rng)))
