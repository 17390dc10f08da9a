"""Naive Bayes as a model under examination: it draws pictures and, of pixels, says how surprising each one is."""

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
from pipelines.validation.datasets.avatars.mosaic import colours, mosaic
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.labelled_dataset import Pictures


class FeatureModel:
    """Pictures of looks whose features are drawn one by one.

    Parameters
    ----------
    settings
        α.
    avatars
        The looks that were observed, and the picture of every look.
    """

    family: ClassVar[str] = "naive Bayes of features"

    def __init__(self, settings: NaiveBayesSettings, avatars: Avatars) -> None:
        self.avatars = avatars
        self.law = FeatureNaiveBayes.fit(avatars.observed, settings.alpha)

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` pictures ``(n, 1, H, W)``."""
        del covariates
        numbers = _numbers(rng)
        rows = np.stack([numbers.choice(len(p), size=n, p=p) for p in self.law.theta], axis=1)
        return torch.from_numpy(self.avatars.album.of(rows))[:, None]


class PixelModel(ClosedFormDetector):
    """Pictures whose pixels and channels are each drawn on their own.

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
        learnt = PixelNaiveBayes.fit(colours(pixels), self.naive.levels, self.naive.alpha)
        self.theta = torch.from_numpy(learnt.theta)

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the map ``surprise``, −ln P of each colour, nats, and the mean picture as what was expected."""
        del covariates
        rgb = colours(images[:, 0].numpy())
        surprise = torch.from_numpy(_in_mosaic(self.learnt().surprise(rgb)))[:, None]
        mean = (self.theta * torch.linspace(0, 255, self.theta.shape[-1])).sum(dim=-1).numpy()
        expected = torch.from_numpy(mosaic(mean[None]))[:, None].expand_as(images)
        return Evidence({"surprise": apply_mask(surprise, mask)}, apply_mask(expected, mask))

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` pictures ``(n, 1, H, W)``."""
        del covariates
        return torch.from_numpy(mosaic(self.learnt().sample(n, _numbers(rng))))[:, None]

    def learnt(self) -> PixelNaiveBayes:
        """Return the model behind the detector."""
        return PixelNaiveBayes(self.theta.numpy())


def naive_bayes_of(
    settings: NaiveBayesSettings, pictures: Pictures, avatars: Avatars | None
) -> FeatureModel | PixelModel:
    """Return naive Bayes, of features learnt from the fifty looks, of pixels from pictures.

    Raises
    ------
    ConfigError
        If the world has no looks.
    """
    if avatars is None:
        raise ConfigError("naive_bayes learns looks; use it in the world avatars")
    if settings.of == "features":
        return FeatureModel(settings, avatars)
    model = PixelModel(settings, pictures.grid)
    model.fit_closed_form(pictures)
    return model


def _in_mosaic(values: Floats) -> FloatArray:
    """Return numbers ``(N, H, W, 3)`` of colours at their places ``(N, 2H, 2W)``; 0 at that of the mean."""
    n, h, w, _ = values.shape
    four = np.concatenate([values, np.zeros((n, h, w, 1))], axis=-1)
    blocks = four.reshape(n, h, w, 2, 2).transpose(0, 1, 3, 2, 4).reshape(n, 2 * h, 2 * w)
    return np.asarray(blocks, dtype=np.float32)


def _numbers(rng: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**31, (1,), generator=rng)))
