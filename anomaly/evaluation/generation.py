"""Quality and diversity of generated images: density, coverage, precision, recall, Fréchet distance, memorisation.

Real images x₁ … x_N and generated images y₁ … y_M are points: flattened small images, or codes. Distances are
Euclidean; r_k(xᵢ) is the distance from xᵢ to its k-th nearest other real image.

    coverage = 1/N Σᵢ [some yⱼ lies within r_k(xᵢ) of xᵢ]                     0 to 1
    density  = 1/(kM) Σⱼ Σᵢ [yⱼ lies within r_k(xᵢ) of xᵢ]                    0 and up, about 1 if yⱼ are real
    distinct = 1/M Σⱼ [the nearest other yₗ is farther from yⱼ than a quarter of the median r₁]    0 to 1

Two sets of real images of the same size have an expected coverage of 1 − 2⁻ᵏ. A generator with mode collapse has a
low coverage, or repeats images, so that few of them are distinct.

In the feature space of a network, with means μ and covariances Σ of real and generated points:

    Fréchet distance = |μ_r − μ_g|² + tr(Σ_r + Σ_g − 2 (Σ_r Σ_g)^½)           between Gaussians fitted to both
    precision = 1/M Σⱼ [yⱼ lies within r_k(xᵢ) of some xᵢ]                    generated images that could be real
    recall    = 1/N Σᵢ [xᵢ lies within r_k(yⱼ) of some yⱼ]                    real images that could be generated

A memorised image lies much closer to one training image than to any other:

    memorised = 1/M Σⱼ [d₁(yⱼ) < d₂(yⱼ) / 3],  d₁ and d₂ the distances from yⱼ to the nearest and second nearest xᵢ

Source: Naeem, Oh, Uh, Choi & Yoo 2020, "Reliable Fidelity and Diversity Metrics for Generative Models" (density
and coverage); Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule" (Fréchet distance); Kynkäänniemi
et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models"; Yoon et al. 2023, "Diffusion
Probabilistic Models Generalize when They Fail to Memorize" (the ratio of 1/3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

N_NEIGHBOURS = 5
REPEAT_DISTANCE_RATIO = 0.25  # of the median distance between real images; closer generated images are repeats
COPY_DISTANCE_RATIO = 1 / 3  # of the distance to the second nearest training image; closer ones are copies
BATCH_SIZE = 1000  # generated images compared at a time

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DensityCoverage:
    """Coverage, density and fraction of distinct images; see the module's docstring."""

    coverage: float
    density: float
    distinct: float


def density_coverage(
    real: npt.ArrayLike, generated: npt.ArrayLike, neighbours: int = N_NEIGHBOURS
) -> DensityCoverage:
    """Compute density and coverage of generated images.

    Parameters
    ----------
    real
        ``(N, ...)`` with N > ``neighbours``; images are flattened.
    generated
        ``(M, ...)`` with M ≥ 2.
    neighbours
        The number k of nearest neighbours.
    """
    real_points, points = _points(real), _points(generated)
    if len(real_points) <= neighbours or len(points) < 2:
        raise ValueError(
            f"found {len(real_points)} real and {len(points)} generated images; expected more than {neighbours} "
            "real ones and at least 2 generated ones"
        )
    among_real = np.sort(cdist(real_points, real_points), axis=1)  # column 0 is the distance to itself
    inside = cdist(real_points, points) <= among_real[:, [neighbours]]
    return DensityCoverage(
        coverage=float(inside.any(axis=1).mean()),
        density=float(inside.sum() / (neighbours * len(points))),
        distinct=_distinct(points, REPEAT_DISTANCE_RATIO * float(np.median(among_real[:, 1]))),
    )


def frechet_distance(real: npt.ArrayLike, generated: npt.ArrayLike) -> float:
    """Return the Fréchet distance between Gaussians fitted to features ``(N, D)`` and ``(M, D)``; at least 0."""
    first, second = _points(real), _points(generated)
    cov_first, cov_second = (np.atleast_2d(np.cov(points, rowvar=False)) for points in (first, second))
    root = _square_root(cov_first)
    cross = np.linalg.eigvalsh(root @ cov_second @ root)  # same eigenvalues as Σ_r Σ_g, which is not symmetric
    spread = np.trace(cov_first) + np.trace(cov_second) - 2 * np.sqrt(np.maximum(cross, 0)).sum()
    return float(max(0.0, ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum() + spread))


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of generated images; see the module's docstring."""

    precision: float
    recall: float


def precision_recall(
    real: npt.ArrayLike, generated: npt.ArrayLike, neighbours: int = N_NEIGHBOURS
) -> PrecisionRecall:
    """Compute precision and recall of real ``(N, D)`` and generated ``(M, D)`` features; N, M > ``neighbours``."""
    first, second = _points(real), _points(generated)
    distances = cdist(first, second)
    return PrecisionRecall(
        precision=float((distances <= _radii(first, neighbours)[:, None]).any(axis=0).mean()),
        recall=float((distances <= _radii(second, neighbours)[None, :]).any(axis=1).mean()),
    )


def memorised_fraction(training: npt.ArrayLike, generated: npt.ArrayLike) -> float:
    """Return the fraction of generated images ``(M, ...)`` that are copies of training images ``(N, ...)``."""
    known, new = (np.asarray(images, dtype=np.float32) for images in (training, generated))
    known, new = known.reshape(len(known), -1), new.reshape(len(new), -1)
    squares = (known**2).sum(axis=1)
    found = 0
    for start in range(0, len(new), BATCH_SIZE):
        some = new[start : start + BATCH_SIZE]
        nearest = np.argpartition(squares - 2 * some @ known.T, 1, axis=1)[:, :2]
        first, second = np.sort(np.linalg.norm(some[:, None] - known[nearest], axis=2), axis=1).T
        found += int((first < COPY_DISTANCE_RATIO * second).sum())
    return found / len(new)


def _square_root(symmetric: Floats) -> Floats:
    values, vectors = np.linalg.eigh(symmetric)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _radii(points: Floats, neighbours: int) -> Floats:
    """Return r_k ``(N,)``, the distance to the k-th nearest other point."""
    return np.asarray(np.partition(cdist(points, points), neighbours, axis=1)[:, neighbours])


def _distinct(points: Floats, min_distance: float) -> float:
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return float((distances.min(axis=1) > min_distance).mean())


def _points(images: npt.ArrayLike) -> Floats:
    array = np.asarray(images, dtype=np.float64)
    return array.reshape(len(array), -1)
