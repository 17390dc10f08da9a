"""Statistics of healthy scans, so that evidence and scores can be compared across voxels and maps.

A part of the cortex that a model never reconstructs well must not be flagged in every scan. On the template grid
the healthy mean of the signed map is therefore subtracted, and the rest divided by the healthy standard deviation,
voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anomaly.core.aliases import MAPS, rename_keys
from anomaly.core.block_correlation import median_block_correlation
from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.image_views import VolumeSource
from anomaly.core.running_moments import RunningMoments
from anomaly.core.smoothing import sigma_in_voxels, smooth_inside
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.acquisition_shift import FEATURES, AcquisitionReference, acquisition_features
from anomaly.scoring.normative import CovariateRegression, NormativeModel
from anomaly.scoring.settings import ScoringSettings

MIN_COVERAGE = 0.25  # share of the healthy brains that must cover a voxel for it to have statistics of its own
MIN_SD = 1e-6
SD_FILL_PERCENTILE = 99  # of the SD of covered voxels: what voxels get that few brains cover


@dataclass(frozen=True, eq=False)
class HealthyReference:
    """Statistics of healthy scans on the template grid.

    Parameters
    ----------
    mean, sd
        Map name → float32 ``(I, J, K)`` of the signed, smoothed map; ``sd`` includes its floor and is > 0.
    mean_image
        float32 ``(I, J, K)`` mean healthy image; a scan that does not resemble it is refused,
        see :func:`similarity`.
    acquisition
        Features of the scanners and protocols of the healthy scans.
    score_mean, score_std
        Scan score name → mean and SD over healthy scans, to put scores on one scale before they are combined.
    held_out_scores
        Scan score name → its values for healthy scans that the detector did not learn from. An ensemble compares
        the scores of its members with them. Empty in models of earlier versions.
    background
        Median over held-out healthy scans of the background of their evidence, see
        ``ScoringSettings.background_percentile``; None if it is not used.
    normative
        How mean and SD depend on age and sex; None where the settings do not ask for it, or where too few healthy
        scans are of known age.
    """

    mean: Mapping[str, FloatArray]
    sd: Mapping[str, FloatArray]
    mean_image: FloatArray
    acquisition: AcquisitionReference
    score_mean: Mapping[str, float] = field(default_factory=dict)
    score_std: Mapping[str, float] = field(default_factory=dict)
    held_out_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    background: float | None = None
    normative: NormativeModel | None = None

    def arrays(self) -> dict[str, FloatArray]:
        """Return the voxelwise statistics by the names under which they are saved."""
        means = {f"mean.{name}": values for name, values in self.mean.items()}
        sds = {f"sd.{name}": values for name, values in self.sd.items()}
        by_covariates = {} if self.normative is None else self.normative.arrays()
        images = {"appearance": self.mean_image, "acquisition": self.acquisition.features}
        return {**means, **sds, **images, **by_covariates}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, FloatArray],
        score_mean: Mapping[str, float],
        score_std: Mapping[str, float],
        held_out_scores: Mapping[str, Sequence[float]],
        background: float | None = None,
    ) -> HealthyReference:
        """Return the reference whose :meth:`arrays` were saved."""
        acquisition = AcquisitionReference(arrays["acquisition"])
        mean, sd = _with_prefix(arrays, "mean."), _with_prefix(arrays, "sd.")
        return cls(
            mean,
            sd,
            arrays["appearance"],
            acquisition,
            score_mean,
            score_std,
            held_out_scores,
            background,
            NormativeModel.from_arrays(arrays),
        )


def similarity(voxels: FloatArray, mask: MaskArray, mean_image: FloatArray, grid: Geometry) -> float:
    """Return the median block correlation of a scan with the mean healthy image inside the mask.

    A lesion hardly changes it, however large or bright, see :mod:`anomaly.core.block_correlation`.
    """
    return median_block_correlation(voxels, mean_image, mask & (mean_image > 0), grid.spacing)


def fit_reference(
    scans: Iterable[tuple[Mapping[str, FloatArray], FloatArray, MaskArray, FloatArray]],
    grid: Geometry,
    settings: ScoringSettings,
) -> HealthyReference:
    """Compute the voxelwise mean and SD of healthy scans. One scan at a time is in memory.

    Parameters
    ----------
    scans
        ``(signed maps by name, voxels, mask, covariates)`` of each scan: ``(I, J, K)`` on ``grid``, maps smoothed;
        covariates ``(D,)``.
    """
    of_maps = {name: RunningMoments(grid.shape) for name in (*settings.maps, *settings.structure_maps)}
    of_voxels = RunningMoments(grid.shape)
    features = []
    regression = CovariateRegression(of_maps, grid.shape) if settings.standardise == "normative" else None
    for maps, voxels, mask, covariates in scans:
        for name, moments in of_maps.items():
            moments.add(maps[name], mask)
        of_voxels.add(voxels, mask)
        features.append(acquisition_features(voxels, mask))
        if regression is not None:
            regression.add(maps, mask, covariates)
    mean = {name: _covered_mean(moments) for name, moments in of_maps.items()}
    sd = {name: floored_sd(found, settings.floor_of(name), grid, settings) for name, found in of_maps.items()}
    return HealthyReference(
        mean=mean,
        sd=sd,
        mean_image=_covered_mean(of_voxels),
        acquisition=AcquisitionReference(
            np.array(features, dtype=np.float32).reshape(len(features), len(FEATURES))
        ),
        normative=regression.fit(mean, sd, sigma_in_voxels(settings.sd_smoothing_mm, grid)) if regression else None,
    )


def mean_healthy_image(scans: VolumeSource) -> FloatArray:
    """Return the mean ``(I, J, K)`` of healthy scans, 0 where few of their brains reach."""
    moments = RunningMoments(scans.grid.shape)
    for index in range(len(scans)):
        moments.add(*scans[index])
    return _covered_mean(moments)


def standardised(
    maps: Mapping[str, FloatArray],
    mask: MaskArray,
    reference: HealthyReference,
    weights: Mapping[str, float],
    covariates: FloatArray = UNKNOWN_COVARIATES,
) -> FloatArray:
    """Return the weighted mean of ``(map − healthy mean) / healthy SD`` inside the mask, in standard deviations.

    Mean and SD are those of the age and sex of the subject, where the reference depends on them and the age is
    known.
    """
    total, normative = sum(weights.values()), reference.normative
    x = None if normative is None else normative.design(covariates)
    if normative is None or x is None:
        z = sum(w / total * (maps[name] - reference.mean[name]) / reference.sd[name] for name, w in weights.items())
        return np.asarray(np.where(mask, z, 0), dtype=np.float32)
    of_maps = {name: (maps[name] - reference.mean[name]) / reference.sd[name] for name in weights}
    adjusted = sum(w / total * normative.adjust(name, of_maps[name], x) for name, w in weights.items())
    return np.asarray(np.where(mask, adjusted / normative.sd_factor(covariates), 0), dtype=np.float32)


def _covered(moments: RunningMoments) -> MaskArray:
    """Return the voxels that enough healthy brains cover to have statistics of their own."""
    return np.asarray(moments.count >= max(2, MIN_COVERAGE * moments.n_arrays))


def _covered_mean(moments: RunningMoments) -> FloatArray:
    return np.where(_covered(moments), moments.mean(), 0).astype(np.float32)


def floored_sd(moments: RunningMoments, share: float, grid: Geometry, settings: ScoringSettings) -> FloatArray:
    """Smooth the SD, fill it where few brains reach with the SD of the most variable voxels, and add the floor.

    ``share`` is the floor as a share of the median SD.
    """
    sd, covered = moments.sd(ddof=1).astype(np.float32), _covered(moments)
    if not covered.any():
        return np.ones_like(sd)
    smoothed = smooth_inside(sd, covered, sigma_in_voxels(settings.sd_smoothing_mm, grid))
    filled = np.where(covered, smoothed, np.percentile(smoothed[covered], SD_FILL_PERCENTILE))
    floor = max(share * float(np.median(sd[covered])), MIN_SD)
    return np.asarray(np.sqrt(filled**2 + floor**2), dtype=np.float32)


def _with_prefix(arrays: Mapping[str, FloatArray], prefix: str) -> dict[str, FloatArray]:
    found = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    return rename_keys(found, MAPS)
