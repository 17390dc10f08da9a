"""Naive Bayes of the attributes of an avatar, which are independent, and of its pixels, which are not.

Attributes (features):

    θ_fv    = (n_fv + α) / (Σ_v n_fv + α K_f)         α = 0: maximum likelihood; α > 0: no value is impossible
    P(a)    = Π_f θ_f,v(f)                            of a combination a of attributes

The attributes of the avatars are independent by construction, so the model is correct, and a new combination that
it samples is as likely as an observed one.

Pixels, x_ijc the grey level of channel c at row i, column j:

    θ_ijcl  = (n_ijcl + α) / (N + α L)
    P(x)    = Π_ijc θ_ijc,x(ijc)

Every pixel and channel has the right frequency of each grey level, and still no sample is an avatar. All pixels of
the hair have one colour. Sampled independently, neighbouring pixels get the colours of different avatars, or the
background, and independent channels mix colours that do not occur. An image is determined by five choices, 6.6 nats
(:func:`pipelines.validation.datasets.avatars.distribution.entropy`); this model treats every pixel and channel as a
choice of its own, about 2,000 nats (:meth:`PixelNaiveBayes.entropy`). The difference is the information that pixels
have about each other, which this model cannot learn from any number of images.

It fails as a generative model. As a detector it is of some use: a colour where none is expected, such as an
eyepatch, is improbable for the pixels that show it. But so is a rare colour of clothes, in each of its pixels.

Source: Foster 2019, "Generative Deep Learning", chapter 1 (both models, on such a table of attributes).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import InputError
from anomaly.evaluation.categorical import Floats, column_counts
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.distribution import (
    VALUES,
    Attributes,
    every_combination,
    smoothed,
    visible,
)

GREY_LEVELS = 16
PIXEL_ALPHA = 0.01  # small: see :class:`PixelNaiveBayes`

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FeatureNaiveBayes:
    """Independent attributes, fitted to combinations of attributes.

    Parameters
    ----------
    theta
        Probabilities of the values of each attribute, in the order of ``distribution.VALUES``: five arrays
        ``(K_f,)``.
    """

    theta: tuple[Floats, ...]

    @classmethod
    def fit(cls, combinations: Iterable[Attributes], alpha: float = 0.0) -> FeatureNaiveBayes:
        """Fit to combinations; α is added to the count of each value. Hidden values are left out."""
        counts = column_counts(distribution.codes(combinations), [len(values) for values in VALUES])
        return cls(tuple(smoothed(count, alpha) for count in counts))

    def probability(self, combination: Attributes) -> float:
        """Return P(combination); where a value is hidden, the sum over its possible values."""
        return float(distribution.probabilities([combination], self.theta)[0])

    def unobserved(self, n: int, observed: Iterable[Attributes], seed: int) -> list[tuple[Attributes, float]]:
        """Sample ``n`` different combinations that were not observed, each with its probability.

        Combinations are sampled one by one, and one with the same image as an earlier one is left out: a bald
        avatar with another hidden hair colour is not new.

        Raises
        ------
        InputError
            Fewer than ``n`` unobserved images are possible.
        """
        combinations = every_combination()
        p = distribution.probabilities(combinations, self.theta)
        before = {visible(combination) for combination in observed}
        found: dict[Attributes, int] = {}
        for i in _sampling_order(p, np.random.default_rng(seed)):
            if visible(combinations[i]) not in before:
                found.setdefault(visible(combinations[i]), i)
        if len(found) < n:
            raise InputError(
                f"found {len(found)} unobserved combinations that are possible, expected at least {n}; "
                "request fewer, or fit with alpha > 0"
            )
        return [(combinations[i], float(p[i])) for i in list(found.values())[:n]]


@dataclass(frozen=True, eq=False)
class PixelNaiveBayes:
    """Independent pixels and channels, each with a categorical distribution over a few grey levels.

    A Gaussian would fit worse: a pixel is hair, skin or background and seldom in between, where a Gaussian has most
    of its mass. So each pixel is modelled well, and only the independence fails. For the same reason α is small:
    with α = 1, fifty images and 16 levels, one pixel in four would be noise.

    Parameters
    ----------
    theta
        ``(H, W, C, L)`` probability of each grey level.
    """

    theta: Floats

    @classmethod
    def fit(cls, images: Images, levels: int = GREY_LEVELS, alpha: float = PIXEL_ALPHA) -> PixelNaiveBayes:
        """Fit to images uint8 ``(N, H, W, C)``."""
        found = _levels(images, levels)
        counts = np.stack([(found == level).sum(axis=0) for level in range(levels)], axis=-1)
        return cls((counts + alpha) / (len(found) + alpha * levels))

    def sample(self, n: int, rng: np.random.Generator) -> Images:
        """Sample images uint8 ``(n, H, W, C)``."""
        steps = self.theta.shape[-1] - 1
        uniform = rng.random((n, *self.theta.shape[:-1]))
        below = np.cumsum(self.theta, axis=-1)
        drawn = np.zeros(uniform.shape, dtype=np.uint8)
        for level in range(steps):
            drawn += uniform >= below[..., level]
        return np.asarray(np.rint(drawn * (255 / steps)), dtype=np.uint8)

    def log_likelihood(self, images: Images) -> Floats:
        """Return ln P of images uint8 ``(N, H, W, C)``, in nats ``(N,)``; −ln P is an anomaly score."""
        return np.array([-self.negative_log_likelihood(one[None]).sum() for one in images], dtype=np.float64)

    def negative_log_likelihood(self, images: Images) -> Floats:
        """Return −ln θ of each pixel and channel of images uint8 ``(N, H, W, C)``, nats, in the same shape."""
        found = _levels(images, self.theta.shape[-1])
        with np.errstate(divide="ignore"):
            nats = -np.log(self.theta)
        return np.stack([np.take_along_axis(nats, one[..., None], axis=-1)[..., 0] for one in found])

    def entropy(self) -> float:
        """Return the entropy of an image of this model in nats, −Σ θ ln θ."""
        some = self.theta[self.theta > 0]
        return float(-(some * np.log(some)).sum())


def _sampling_order(p: Floats, rng: np.random.Generator) -> list[int]:
    """Return the possible cells in the order in which sequential sampling would first meet them (Gumbel trick)."""
    possible = np.flatnonzero(p)
    keys = np.log(p[possible]) + rng.gumbel(size=len(possible))
    return [int(i) for i in possible[np.argsort(-keys)]]


def _levels(images: Images, levels: int) -> npt.NDArray[np.int64]:
    return np.rint(np.asarray(images, dtype=np.float64) * ((levels - 1) / 255)).astype(np.int64)
