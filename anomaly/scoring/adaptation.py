"""Adapt what a trained model knows of a scanner to another one, with a few healthy scans and no training.

The weights of the network stay. What depends on the scanner is estimated again from n local healthy scans, and
shrunk towards the estimate from the training scans, because n is small:

- the mean of each map, voxel by voxel: the posterior mean of a normal prior that counts as n₀ scans,
  ``μ = μ₀ + n / (n + n₀) · (x̄ − μ₀)``;
- the SD of each map: a voxelwise SD cannot be estimated from a few scans, so the SD of training keeps its pattern
  and is multiplied by one factor f, with a scaled inverse χ² prior that counts as ν₀ scans:
  ``f² = (ν₀ + (n − 1) r) / (ν₀ + n − 1)``, r the median over the brain of the local variance over that of training;
- the acquisition features: the training features, shifted to the local mean and scaled by such a factor each;
- the held-out scores: each local subject is scored with the statistics of all others.

Location and scale of each scanner with shrinkage: Johnson 2007, "Adjusting batch effects in microarray expression
data using empirical Bayes methods" (ComBat); Fortin 2018, "Harmonization of cortical thickness measurements across
scanners and sites". The conjugate prior: Gelman et al. 2013, "Bayesian Data Analysis", §3.3. There n₀ and ν₀ would
be estimated from all voxels; here they are fixed, because the voxels of a smoothed map are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import BundleError
from anomaly.core.image_views import VolumeSource
from anomaly.core.running_moments import RunningMoments
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.acquisition_shift import AcquisitionReference, Features, acquisition_features
from anomaly.scoring.reference import HealthyReference
from anomaly.scoring.scan_scores import with_held_out_scores
from anomaly.scoring.scorer import Inference, Scorer

MEAN_PRIOR_SCANS = 2.0
"""n₀: the training mean counts as this many local scans."""
SD_PRIOR_SCANS = 8.0
"""ν₀: the training SD counts as this many local scans."""
MIN_SD = 1e-6


@dataclass(frozen=True, eq=False)
class LocalScan:
    """What is learnt from one local healthy scan.

    Parameters
    ----------
    maps
        Map name → float32 ``(I, J, K)`` of the signed, smoothed map.
    voxels, mask
        The scan ``(I, J, K)`` as received from the preprocessing.
    """

    maps: Mapping[str, FloatArray]
    voxels: FloatArray
    mask: MaskArray


def adapt_scorer(scorer: Scorer, local: VolumeSource, subjects: Sequence[str]) -> Scorer:
    """Return a scorer adapted to the scanner of some healthy scans.

    Parameters
    ----------
    scorer
        A trained scorer with its healthy reference.
    local
        Healthy scans of the other scanner.
    subjects
        The subject of each scan.

    Raises
    ------
    BundleError
        The scorer cannot be adapted; the message says why.
    """
    home = _adaptable(scorer)
    raw = list(scorer.infer_all(local))
    scans = [LocalScan(scorer.smoothed_maps(evidence, mask), voxels, mask) for evidence, voxels, mask in raw]
    held_out = _scores_without_own_subject(scorer, home, raw, scans, subjects)
    return replace(scorer, reference=with_held_out_scores(adapted_reference(home, scans, scorer.grid), held_out))


def adapted_reference(home: HealthyReference, scans: Sequence[LocalScan], grid: Geometry) -> HealthyReference:
    """Return the statistics of training, moved towards those of local scans; the scores are those of training."""
    moments = {name: RunningMoments(grid.shape) for name in home.mean}
    for scan in scans:
        for name, found in moments.items():
            found.add(scan.maps[name], scan.mask)
    features = np.array([acquisition_features(scan.voxels, scan.mask) for scan in scans])
    return replace(
        home,
        mean={name: shrunken_mean(home.mean[name], found) for name, found in moments.items()},
        sd={name: home.sd[name] * sd_factor(home.sd[name], found) for name, found in moments.items()},
        acquisition=adapted_acquisition(home.acquisition, features),
    )


def shrunken_mean(home: FloatArray, local: RunningMoments) -> FloatArray:
    """Return the posterior mean of each voxel; without local scans at a voxel, that of training."""
    share = local.count / (local.count + MEAN_PRIOR_SCANS)
    return np.asarray(home + share * (local.mean() - home), dtype=np.float32)


def sd_factor(home_sd: FloatArray, local: RunningMoments) -> np.float32:
    """Return the factor of the SD of training, from the median ratio of the variances where all scans reach."""
    covered = local.count == local.n_arrays
    if local.n_arrays < 2 or not covered.any():
        return np.float32(1)
    ratio = float(np.median(local.variance(ddof=1)[covered] / home_sd[covered].astype(np.float64) ** 2))
    return np.float32(np.sqrt(shrunken_ratio(ratio, local.n_arrays)))


def shrunken_ratio(ratio: npt.ArrayLike, n_scans: int) -> npt.NDArray[np.float64]:
    """Return the posterior mean of a ratio of variances, estimated from n scans, whose prior mean is 1."""
    return (SD_PRIOR_SCANS + (n_scans - 1) * np.asarray(ratio)) / (SD_PRIOR_SCANS + n_scans - 1)


def adapted_acquisition(home: AcquisitionReference, local: Features) -> AcquisitionReference:
    """Return the features of training, moved to the local mean and scaled to the local SD with shrinkage.

    The deviations are also scaled by ``√(1 + 1/n)``, because the local mean is known from n scans only.
    """
    n = len(local)
    mean, sd = home.features.mean(axis=0), np.maximum(home.features.std(axis=0, ddof=1), MIN_SD)
    ratio = local.var(axis=0, ddof=1) / sd**2 if n > 1 else np.ones_like(sd)
    scale = np.sqrt((1 + 1 / n) * shrunken_ratio(ratio, n))
    return AcquisitionReference((local.mean(axis=0) + scale * (home.features - mean)).astype(np.float32))


def _adaptable(scorer: Scorer) -> HealthyReference:
    """Return the healthy reference of a scorer that can be adapted."""
    if scorer.reference is None:
        raise BundleError("the model has no healthy reference that could be adapted; train it again")
    if scorer.settings.standardise == "none":
        raise BundleError(
            "the maps of the model are not standardised (scoring.standardise: none), so its scores do not depend "
            "on a healthy reference that could be adapted; train it with scoring.standardise: voxelwise"
        )
    return scorer.reference


def _scores_without_own_subject(
    scorer: Scorer,
    home: HealthyReference,
    raw: Sequence[Inference],
    scans: Sequence[LocalScan],
    subjects: Sequence[str],
) -> list[dict[str, float]]:
    """Score each scan with the statistics of the scans of all other subjects."""
    scores: dict[int, dict[str, float]] = {}
    for subject in dict.fromkeys(subjects):
        others = [scan for scan, other in zip(scans, subjects, strict=True) if other != subject]
        without = replace(scorer, reference=adapted_reference(home, others, scorer.grid) if others else home)
        own = (index for index, other in enumerate(subjects) if other == subject)
        scores |= {index: without.postprocess(*raw[index]).scores for index in own}
    return [scores[index] for index in range(len(scans))]
