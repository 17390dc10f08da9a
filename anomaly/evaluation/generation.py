"""Does a generator make everything that is real, and something new each time?

Real images x₁ … x_N and generated ones y₁ … y_M are points: flattened small images, or codes. Distances are
Euclidean; r_k(xᵢ) is the distance from xᵢ to its k-th nearest other real image.

    coverage = 1/N Σᵢ [some yⱼ lies within r_k(xᵢ) of xᵢ]                     0 to 1
    density  = 1/(kM) Σⱼ Σᵢ [yⱼ lies within r_k(xᵢ) of xᵢ]                    0 and up, about 1 if yⱼ are real
    distinct = 1/M Σⱼ [the nearest other yₗ is farther from yⱼ than a share of the median r₁]    0 to 1

Real images against others of their kind, as many, are expected to have a coverage of 1 − 2⁻ᵏ. A generator that has
collapsed makes few kinds of images (low coverage), or one image again and again (few are distinct).

Source: Naeem, Oh, Uh, Choi & Yoo 2020, "Reliable Fidelity and Diversity Metrics for Generative Models" (density
and coverage).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

NEIGHBOURS = 5
REPEATED = 0.25  # share of the usual distance between real images, below which a generated one is a repetition

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Variety:
    """How much of what is real a generator makes; see the module's docstring."""

    coverage: float
    density: float
    distinct: float


def variety(real: npt.ArrayLike, generated: npt.ArrayLike, neighbours: int = NEIGHBOURS) -> Variety:
    """Measure generated against real images.

    Parameters
    ----------
    real
        ``(N, ...)``, N more than ``neighbours``; flattened.
    generated
        ``(M, ...)``, M at least 2.
    neighbours
        k.
    """
    real_points, points = _points(real), _points(generated)
    if len(real_points) <= neighbours or len(points) < 2:
        raise ValueError(
            f"found {len(real_points)} real and {len(points)} generated images; expected more than {neighbours} "
            "real ones and at least 2 generated ones"
        )
    among_real = np.sort(cdist(real_points, real_points), axis=1)  # the nearest of each is itself
    inside = cdist(real_points, points) <= among_real[:, [neighbours]]
    return Variety(
        coverage=float(inside.any(axis=1).mean()),
        density=float(inside.sum() / (neighbours * len(points))),
        distinct=_distinct(points, REPEATED * float(np.median(among_real[:, 1]))),
    )


def _distinct(points: Floats, least: float) -> float:
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return float((distances.min(axis=1) > least).mean())


def _points(images: npt.ArrayLike) -> Floats:
    array = np.asarray(images, dtype=np.float64)
    return array.reshape(len(array), -1)
