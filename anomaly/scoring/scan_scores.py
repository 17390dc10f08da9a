"""Compute scan scores from an evidence map. Larger = more anomalous."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly.core.volume import FloatArray, MaskArray
from anomaly.scoring.reference import HealthyReference

SCORE_DESCRIPTIONS = {
    "reconstruction": "mean evidence of the most anomalous brain voxels (share: top_fraction)",
    "reconstruction_p99": "99th percentile of the evidence in the brain",
    "reconstruction_mean": "mean evidence in the brain",
    "kl": "mean Kullback-Leibler divergence of the latent posterior from its prior (variational families)",
    "negative_elbo": "mean negative evidence lower bound (variational families)",
    "critic_features": "distance between a scan and its reconstruction in critic features (adversarial families)",
    "denoising_loss": "mean squared error of the predicted noise (diffusion family)",
    "negative_log_likelihood": "mean negative log-likelihood of a brain voxel, nats (normalising flow)",
    "hotelling": "Hotelling's T² of a scan along the principal components of healthy scans (pca)",
    "structure": "mean evidence of shape and structure of the voxels with the most of it (share: top_fraction)",
    "background": "percentile of the evidence of the model's maps in the brain (background_percentile)",
    "combined": "mean of reconstruction, kl and negative_elbo, each in healthy standard deviations",
    "ensemble": "merged p-values of the declared scores of the members, which are listed under their names",
}
"""Every scan score with its meaning, as reports print it."""

STRUCTURE_SCORE = "structure"
BACKGROUND_SCORE = "background"
TOP_EVIDENCE = "reconstruction"
COMBINED_SCORES = ("reconstruction", "kl", "negative_elbo")


def scan_scores(
    evidence: FloatArray, mask: MaskArray, terms: Mapping[str, float], top_fraction: float
) -> dict[str, float]:
    """Compute every scan score but the combined one.

    Parameters
    ----------
    evidence
        ``(I, J, K)`` ≥ 0.
    mask
        Voxels that count for the score.
    terms
        The detector's per-scan terms, e.g. ``{"kl": …, "negative_elbo": …}``.
    """
    values = evidence[mask].astype(np.float64)
    return {
        "reconstruction": mean_of_top(values, top_fraction),
        "reconstruction_p99": float(np.percentile(values, 99)),
        "reconstruction_mean": float(values.mean()),
        **terms,
    }


def mean_of_top(values: npt.NDArray[np.floating[Any]], share: float) -> float:
    """Return the mean of the largest values, a share of them, and of the largest one at least."""
    ordered = np.sort(values)[::-1].astype(np.float64)
    return float(ordered[: max(1, round(share * ordered.size))].mean())


def combined_score(scores: Mapping[str, float], reference: HealthyReference) -> float:
    """Return the mean of the scores that measure different things, each in healthy standard deviations."""
    names = [name for name in COMBINED_SCORES if name in scores]
    return float(np.mean([_in_healthy_sd(name, scores[name], reference) for name in names]))


def with_held_out_scores(reference: HealthyReference, scores: Sequence[dict[str, float]]) -> HealthyReference:
    """Return a reference with the scores of held-out scans; the combined score is computed from the others."""
    values = {name: [s[name] for s in scores] for name in scores[0] if name != "combined"}
    with_moments = replace(
        reference,
        score_mean={name: float(np.mean(found)) for name, found in values.items()},
        score_std={name: float(np.std(found)) for name, found in values.items()},
    )
    combined = [combined_score(s, with_moments) for s in scores]
    return replace(with_moments, held_out_scores=values | {"combined": combined})


def _in_healthy_sd(name: str, score: float, reference: HealthyReference) -> float:
    return (score - reference.score_mean.get(name, 0.0)) / (reference.score_std.get(name) or 1.0)
