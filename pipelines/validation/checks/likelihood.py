"""Exam of models that know how probable a picture is.

A variational model's log-likelihood is bounded from below, the tighter the more draws k of its code are weighed
(Burda, Grosse & Salakhutdinov 2016); its negative is measured in nats per picture, of black and white pictures.

A flow's log-likelihood is exact. Pictures of 8 bits have no density, so each grey level is first spread evenly over
its width, u ~ U(−½, ½) (Theis, van den Oord & Bethge 2016, "A note on the evaluation of generative models"):

    bits per dimension = −log₂ p(x + u / 255) / N + log₂ 255,    x in [0, 1], N pixels
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from anomaly.core.errors import ConfigError
from pipelines.validation.model_under_test import Candidate, Findings

LEVELS = 255
AT_ONCE = 50


@runtime_checkable
class Bounded(Protocol):
    """A model whose log-likelihood is bounded by weighing draws of its code."""

    def importance_bound(self, images: Tensor, mask: Tensor, k: int, rng: torch.Generator) -> Tensor:
        """Return the bound of each image ``(B,)``, nats."""
        ...


@runtime_checkable
class Exact(Protocol):
    """A model that knows the density of an image."""

    def negative_log_likelihood(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the share ``(B, 1, *S)`` of every voxel in −log p of its image, nats."""
        ...


def likelihood(candidate: Candidate) -> Findings:
    """Measure how probable a model finds test pictures.

    Raises
    ------
    ConfigError
        If the family cannot say.
    """
    detector = candidate.detector
    if isinstance(detector, Bounded):
        return _bounds(candidate, detector)
    if isinstance(detector, Exact):
        return _bits(candidate, detector)
    raise ConfigError(f"the family {detector.family!r} knows no likelihood; leave out the exam likelihood")


def _bounds(candidate: Candidate, detector: Bounded) -> Findings:
    rng, exams = candidate.rng(2), candidate.exams
    pixels = _test_pixels(candidate, exams.likelihood_of)
    measures = {}
    for k in exams.importance:
        bounds = []
        for number, some in enumerate(pixels.split(AT_ONCE)):
            candidate.progress(number * AT_ONCE, len(pixels), f"bounding the likelihood, k = {k}")
            bounds.append(detector.importance_bound(some, torch.ones_like(some, dtype=torch.bool), k, rng))
        measures[f"nll_{k}"] = -float(torch.cat(bounds).mean())
    return Findings(measures, notes=(f"Likelihood in nats, of {len(pixels)} test pictures.",))


def _bits(candidate: Candidate, detector: Exact) -> Findings:
    pixels = _test_pixels(candidate, 5 * candidate.exams.likelihood_of)
    spread = torch.rand(pixels.shape, generator=candidate.rng(2)) - 0.5
    nats = []
    with torch.inference_mode():
        for some in (pixels + spread / LEVELS).split(AT_ONCE):
            shares = detector.negative_log_likelihood(some, torch.ones_like(some, dtype=torch.bool))
            nats.append(shares.flatten(1).mean(dim=1))
    bits = float(torch.cat(nats).mean()) / math.log(2) + float(np.log2(LEVELS))
    return Findings({"bits_per_dimension": bits}, notes=(f"Likelihood of {len(pixels)} test pictures.",))


def _test_pixels(candidate: Candidate, n: int) -> torch.Tensor:
    """Return ``n`` test pictures ``(n, 1, H, W)`` of all the test set: the first half of MNIST is easier."""
    test = candidate.unseen
    places = np.linspace(0, len(test.pixels), min(n, len(test.pixels)), endpoint=False).astype(int)
    return torch.from_numpy(test.select(places).seen())[:, None]
