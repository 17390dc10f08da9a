"""Check of models with a likelihood: how probable the test images are.

The log-likelihood of a variational model is bounded from below. The bound is tighter the more samples k of the
latent code are weighted (importance-weighted bound; Burda, Grosse & Salakhutdinov 2016). Its negative is measured
in nats per image, of black-and-white images.

The log-likelihood of a flow is exact. Images of 8 bits have no density, so uniform noise u ~ U(−½, ½) of one grey
level is added first (dequantisation; Theis, van den Oord & Bethge 2016, "A note on the evaluation of generative
models"):

    bits per dimension = −log₂ p(x + u / 255) / N + log₂ 255,    x in [0, 1], N pixels
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from anomaly.core.errors import ConfigError
from pipelines.validation.model_under_test import CheckResult, ModelUnderTest

MAX_GREY_LEVEL = 255  # grey levels above 0
BATCH_SIZE = 50
EXACT_LIKELIHOOD_IMAGE_FACTOR = 5  # times as many images where the likelihood is exact, because it is quick


@runtime_checkable
class BoundedLikelihood(Protocol):
    """A model whose log-likelihood is bounded by weighting samples of its latent code."""

    def importance_bound(self, images: Tensor, mask: Tensor, k: int, rng: torch.Generator) -> Tensor:
        """Return the bound of each image ``(B,)``, nats."""
        ...


@runtime_checkable
class ExactLikelihood(Protocol):
    """A model that computes the density of an image."""

    def negative_log_likelihood(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the share ``(B, 1, *S)`` of every voxel in −log p of its image, nats."""
        ...


def check_likelihood(model: ModelUnderTest) -> CheckResult:
    """Measure the likelihood of test images.

    Raises
    ------
    ConfigError
        If the family has no likelihood.
    """
    detector = model.detector
    if isinstance(detector, BoundedLikelihood):
        return _importance_bounds(model, detector)
    if isinstance(detector, ExactLikelihood):
        return _bits_per_dimension(model, detector)
    raise ConfigError(f"the family {detector.family!r} has no likelihood; remove the check likelihood")


def _importance_bounds(model: ModelUnderTest, detector: BoundedLikelihood) -> CheckResult:
    rng, settings = model.rng(2), model.settings
    pixels = _test_pixels(model, settings.likelihood_images)
    measures = {}
    for k in settings.importance_samples:
        bounds = []
        for number, some in enumerate(pixels.split(BATCH_SIZE)):
            model.progress(number * BATCH_SIZE, len(pixels), f"bounding the likelihood, k = {k}")
            bounds.append(detector.importance_bound(some, torch.ones_like(some, dtype=torch.bool), k, rng))
        measures[f"nll_{k}"] = -float(torch.cat(bounds).mean())
    return CheckResult(measures, notes=(f"Likelihood in nats, of {len(pixels)} test images.",))


def _bits_per_dimension(model: ModelUnderTest, detector: ExactLikelihood) -> CheckResult:
    pixels = _test_pixels(model, EXACT_LIKELIHOOD_IMAGE_FACTOR * model.settings.likelihood_images)
    noise = torch.rand(pixels.shape, generator=model.rng(2)) - 0.5
    nats = []
    with torch.inference_mode():
        for some in (pixels + noise / MAX_GREY_LEVEL).split(BATCH_SIZE):
            shares = detector.negative_log_likelihood(some, torch.ones_like(some, dtype=torch.bool))
            nats.append(shares.flatten(1).mean(dim=1))
    bits = float(torch.cat(nats).mean()) / math.log(2) + float(np.log2(MAX_GREY_LEVEL))
    return CheckResult({"bits_per_dimension": bits}, notes=(f"Likelihood of {len(pixels)} test images.",))


def _test_pixels(model: ModelUnderTest, n: int) -> torch.Tensor:
    """Return ``n`` test images ``(n, 1, H, W)``, evenly spaced: the first half of MNIST's test set is easier."""
    test = model.test_images
    positions = np.linspace(0, len(test.pixels), min(n, len(test.pixels)), endpoint=False).astype(int)
    return torch.from_numpy(test.select(positions).model_inputs())[:, None]
