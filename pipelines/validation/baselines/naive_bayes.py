"""Naive Bayes: of the features of a look, which are independent, and of pixels, which are not.

Features:

    θ_fv    = (n_fv + α) / (Σ_v n_fv + α K_f)         α = 0: maximum likelihood; α > 0: no value is impossible
    P(look) = Π_f θ_f,v(f)

The looks were put together feature by feature, each without regard to the others: the model is the truth, and a new
look it makes is as good as an observed one.

Pixels, x_ijc the grey level of channel c at row i, column j:

    θ_ijcl  = (n_ijcl + α) / (N + α L)
    P(x)    = Π_ijc θ_ijc,x(ijc)

Every pixel and channel is drawn as often at each grey level as it is seen there, and still no drawn picture is a
look. The pixels of one head of hair have one colour because one choice made them all; drawn each by itself, one
is red, the next silver, the next the background that is there when the hair is short, and channels that are drawn
apart mix colours that nobody wears. A picture tells five choices, in
:func:`pipelines.validation.datasets.avatars.distribution.entropy` =
6.6 nats; this model pays for each choice again in every pixel and channel that shows it, about 2,000 nats
(:meth:`PixelNaiveBayes.entropy`). The difference is what pixels know of one another, and what the model cannot
learn from any number of pictures.

It fails as a generator. As a detector it is better than nothing: a colour where the law puts none, such as an
eyepatch, is improbable for the pixels that show it. But so is a rare colour of clothes, in each of its pixels.

Source: Foster 2019, "Generative Deep Learning", chapter 1 (both models, on such a table of looks).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import InputError
from anomaly.evaluation.categorical import Floats, column_counts
from pipelines.validation.datasets.avatars import distribution as law
from pipelines.validation.datasets.avatars.distribution import VALUES, Look, every_look, smoothed, visible

LEVELS = 16
PIXEL_ALPHA = 0.01

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FeatureNaiveBayes:
    """A law of looks, learnt from looks.

    Parameters
    ----------
    theta
        Probabilities of the values of each feature, in the order of ``law.VALUES``: five arrays ``(K_f,)``.
    """

    theta: tuple[Floats, ...]

    @classmethod
    def fit(cls, looks: Iterable[Look], alpha: float = 0.0) -> FeatureNaiveBayes:
        """Learn from looks; α is added to the count of each value. Hidden values are left out."""
        counts = column_counts(law.codes(looks), [len(values) for values in VALUES])
        return cls(tuple(smoothed(count, alpha) for count in counts))

    def probability(self, look: Look) -> float:
        """Return P(look); where a value is hidden, the sum over what it may be."""
        return float(law.probabilities([look], self.theta)[0])

    def new_looks(self, n: int, observed: Iterable[Look], seed: int) -> list[tuple[Look, float]]:
        """Draw ``n`` looks that are none of the observed ones and all different, each with its probability.

        Looks are drawn one by one, and one whose picture was there before is left out: a bald look with another
        hidden hair colour is not new.

        Raises
        ------
        InputError
            Fewer than ``n`` new pictures are possible.
        """
        looks = every_look()
        p = law.probabilities(looks, self.theta)
        before = {visible(look) for look in observed}
        found: dict[Look, int] = {}
        for i in _order_of_appearance(p, np.random.default_rng(seed)):
            if visible(looks[i]) not in before:
                found.setdefault(visible(looks[i]), i)
        if len(found) < n:
            raise InputError(
                f"found {len(found)} new looks that are possible, expected at least {n}; ask for fewer, or "
                "fit with alpha > 0"
            )
        return [(looks[i], float(p[i])) for i in list(found.values())[:n]]


@dataclass(frozen=True, eq=False)
class PixelNaiveBayes:
    """A law of pictures in which every pixel and channel is drawn on its own.

    Each is a category of a few grey levels, not a Gaussian: a pixel is hair, skin or background and little in
    between, and a Gaussian would draw mostly what is in between. So each pixel is modelled as well as it can be,
    and what fails is the independence alone. For the same reason α is small: with α = 1, fifty pictures and 16
    levels, one pixel in four would be noise.

    Parameters
    ----------
    theta
        ``(H, W, C, L)`` probability of each grey level.
    """

    theta: Floats

    @classmethod
    def fit(cls, images: Images, levels: int = LEVELS, alpha: float = PIXEL_ALPHA) -> PixelNaiveBayes:
        """Learn from pictures uint8 ``(N, H, W, C)``."""
        found = _levels(images, levels)
        counts = np.stack([(found == level).sum(axis=0) for level in range(levels)], axis=-1)
        return cls((counts + alpha) / (len(found) + alpha * levels))

    def sample(self, n: int, rng: np.random.Generator) -> Images:
        """Draw pictures uint8 ``(n, H, W, C)``."""
        steps = self.theta.shape[-1] - 1
        uniform = rng.random((n, *self.theta.shape[:-1]))
        below = np.cumsum(self.theta, axis=-1)
        drawn = np.zeros(uniform.shape, dtype=np.uint8)
        for level in range(steps):
            drawn += uniform >= below[..., level]
        return np.asarray(np.rint(drawn * (255 / steps)), dtype=np.uint8)

    def log_likelihood(self, images: Images) -> Floats:
        """Return ln P of the grey levels of pictures uint8 ``(N, H, W, C)``, in nats ``(N,)``; −ln P is a score."""
        return np.array([-self.surprise(one[None]).sum() for one in images], dtype=np.float64)

    def surprise(self, images: Images) -> Floats:
        """Return −ln θ of each grey level of pictures uint8 ``(N, H, W, C)``, in nats, of the same shape."""
        found = _levels(images, self.theta.shape[-1])
        with np.errstate(divide="ignore"):
            nats = -np.log(self.theta)
        return np.stack([np.take_along_axis(nats, one[..., None], axis=-1)[..., 0] for one in found])

    def entropy(self) -> float:
        """Return the nats that a picture drawn from this model takes to tell, −Σ θ ln θ."""
        some = self.theta[self.theta > 0]
        return float(-(some * np.log(some)).sum())


def _order_of_appearance(p: Floats, rng: np.random.Generator) -> list[int]:
    """Return the possible cells in the order in which draws one by one would first show them (Gumbel's trick)."""
    possible = np.flatnonzero(p)
    keys = np.log(p[possible]) + rng.gumbel(size=len(possible))
    return [int(i) for i in possible[np.argsort(-keys)]]


def _levels(images: Images, levels: int) -> npt.NDArray[np.int64]:
    return np.rint(np.asarray(images, dtype=np.float64) * ((levels - 1) / 255)).astype(np.int64)
