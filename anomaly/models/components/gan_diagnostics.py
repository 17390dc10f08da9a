"""Diagnostics of adversarial training: mode collapse and an unbalanced critic. A building block, not a family.

Generated images are compared with real ones by density and coverage (Naeem et al. 2020, "Reliable Fidelity and
Diversity Metrics for Generative Models") on images reduced to a few voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from anomaly.evaluation.generation import DensityCoverage, density_coverage
from anomaly.models.base import Diagnostics

Objective = Literal["wgan-gp", "non-saturating", "minimax"]

N_IMAGES = 256  # real images that are compared with as many generated ones
MAX_BATCHES = 32  # fewer images, where batches hold few large ones
MAX_SIDE = 16  # voxels along each axis of the reduced images
MIN_COVERAGE = 0.1  # below it, the generator has collapsed or has not learnt enough
MIN_DISTINCT = 0.5  # share of generated images that differ from all others
REALISTIC_DENSITY = 0.5  # above it, most generated images resemble real ones
MIN_RELATIVE_GAP = 1e-3  # of the critic, relative to the distance between real and generated images
MAX_RELATIVE_GAP = 3.0  # a 1-Lipschitz critic cannot exceed 1
MAX_LOG_ODDS_GAP = 30.0


@torch.no_grad()
def gan_diagnostics(
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    generate: Callable[[Tensor], Tensor],
    critic: Callable[[Tensor, Tensor], Tensor],
    objective: Objective,
) -> Diagnostics:
    """Compare generated with real images, and the outputs of the critic for both.

    Parameters
    ----------
    batches
        Real images ``(B, C, *S)``, masks and covariates ``(B, D)``; only as many as needed are consumed.
    generate
        Returns one image for each row of covariates ``(B, D)``.
    critic
        Returns the outputs ``(B,)`` for images and covariates.
    objective
        Objective of generator and critic.

    Returns
    -------
    Diagnostics
        Numbers ``coverage``, ``density``, ``distinct`` and ``critic_gap``, and a warning with a remedy for each
        problem found.
    """
    real, fake, gaps, distances = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for images, _, covariates in batches:
        generated = generate(covariates)
        real.append(_reduce(images))
        fake.append(_reduce(generated))
        gaps.append(critic(images, covariates) - critic(generated, covariates))
        distances.append((images - generated).flatten(1).norm(dim=1))
        if len(real) == MAX_BATCHES or sum(map(len, real)) >= N_IMAGES:
            break
    found = density_coverage(np.concatenate([t.cpu() for t in real]), np.concatenate([t.cpu() for t in fake]))
    gap, distance = float(torch.cat(gaps).mean()), float(torch.cat(distances).mean())
    numbers = {
        "coverage": found.coverage,
        "density": found.density,
        "distinct": found.distinct,
        "critic_gap": gap,
    }
    return Diagnostics(numbers, (*_collapse(found), *_imbalance(gap, distance, objective, found)))


def _reduce(images: Tensor) -> Tensor:
    size = [min(n, MAX_SIDE) for n in images.shape[2:]]
    return F.interpolate(images, size, mode="area").flatten(1)


def _collapse(found: DensityCoverage) -> Iterator[str]:
    """Yield a warning if the generator has collapsed or has not learnt enough."""
    if found.distinct < MIN_DISTINCT or (found.coverage < MIN_COVERAGE and found.density > REALISTIC_DENSITY):
        yield (
            f"mode collapse of the generator: coverage {found.coverage:.2f} (expected {MIN_COVERAGE} or "
            f"more), and {found.distinct:.2f} of its images are distinct (expected {MIN_DISTINCT} or more); lower "
            "training.learning_rate or raise model.critic_steps"
        )
    elif found.coverage < MIN_COVERAGE:
        yield (
            f"the generator does not yet make images like the real ones: coverage {found.coverage:.2f} (expected "
            f"{MIN_COVERAGE} or more); if this persists, raise training.steps or model.channels"
        )


def _imbalance(gap: float, distance: float, objective: Objective, found: DensityCoverage) -> Iterator[str]:
    """Yield a warning if the gap of the critic is too large or vanishes.

    The gap of a 1-Lipschitz critic is at most the distance of the images.
    """
    limit = MAX_RELATIVE_GAP * distance if objective == "wgan-gp" else MAX_LOG_ODDS_GAP
    if not math.isfinite(gap) or gap > limit:
        yield (
            f"the critic has diverged: its gap between real and generated images is {gap:.3g} (expected at "
            f"most {limit:.3g}); raise model.penalty or set model.spectral_norm to true, or lower "
            "training.learning_rate"
        )
    elif (
        abs(gap) < MIN_RELATIVE_GAP * (distance if objective == "wgan-gp" else 1.0)
        and found.coverage < 5 * MIN_COVERAGE
    ):
        yield (
            f"the critic no longer distinguishes real from generated images (gap {gap:.2g}), although they differ "
            f"(coverage {found.coverage:.2f}); raise model.critic_steps, or lower model.penalty"
        )
