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
from anomaly.core.running_moments import RunningMoments
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.acquisition_shift import FEATURES, AcquisitionReference, acquisition_features
from anomaly.scoring.postprocess import smooth_inside
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
    """

    mean: Mapping[str, FloatArray]
    sd: Mapping[str, FloatArray]
    mean_image: FloatArray
    acquisition: AcquisitionReference
    score_mean: Mapping[str, float] = field(default_factory=dict)
    score_std: Mapping[str, float] = field(default_factory=dict)
    held_out_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def arrays(self) -> dict[str, FloatArray]:
        """Return the voxelwise statistics by the names under which they are saved."""
        means = {f"mean.{name}": values for name, values in self.mean.items()}
        sds = {f"sd.{name}": values for name, values in self.sd.items()}
        return {**means, **sds, "appearance": self.mean_image, "acquisition": self.acquisition.features}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, FloatArray],
        score_mean: Mapping[str, float],
        score_std: Mapping[str, float],
        held_out_scores: Mapping[str, Sequence[float]],
    ) -> HealthyReference:
        """Return the reference whose :meth:`arrays` were saved."""
        acquisition = AcquisitionReference(arrays["acquisition"])
        mean, sd = _with_prefix(arrays, "mean."), _with_prefix(arrays, "sd.")
        return cls(mean, sd, arrays["appearance"], acquisition, score_mean, score_std, held_out_scores)


def similarity(voxels: FloatArray, mask: MaskArray, mean_image: FloatArray, grid: Geometry) -> float:
    """Return the median block correlation of a scan with the mean healthy image inside the mask.

    A lesion hardly changes it, however large or bright, see :mod:`anomaly.core.block_correlation`.
    """
    return median_block_correlation(voxels, mean_image, mask & (mean_image > 0), grid.spacing)


def fit_reference(
    scans: Iterable[tuple[Mapping[str, FloatArray], FloatArray, MaskArray]],
    grid: Geometry,
    settings: ScoringSettings,
) -> HealthyReference:
    """Compute the voxelwise mean and SD of healthy scans. One scan at a time is in memory.

    Parameters
    ----------
    scans
        ``(signed maps by name, voxels, mask)`` of each scan, each ``(I, J, K)`` on ``grid``, maps smoothed.
    """
    of_maps = {name: RunningMoments(grid.shape) for name in settings.maps}
    of_voxels = RunningMoments(grid.shape)
    features = []
    for maps, voxels, mask in scans:
        for name, moments in of_maps.items():
            moments.add(maps[name], mask)
        of_voxels.add(voxels, mask)
        features.append(acquisition_features(voxels, mask))
    return HealthyReference(
        mean={name: _covered_mean(moments) for name, moments in of_maps.items()},
        sd={name: floored_sd(found, settings.floor_of(name), grid, settings) for name, found in of_maps.items()},
        mean_image=_covered_mean(of_voxels),
        acquisition=AcquisitionReference(
            np.array(features, dtype=np.float32).reshape(len(features), len(FEATURES))
        ),
    )


def standardised(
    maps: Mapping[str, FloatArray], mask: MaskArray, reference: HealthyReference, weights: Mapping[str, float]
) -> FloatArray:
    """Return the weighted mean of ``(map − healthy mean) / healthy SD`` inside the mask, in standard deviations."""
    total = sum(weights.values())
    z = sum(w / total * (maps[name] - reference.mean[name]) / reference.sd[name] for name, w in weights.items())
    return np.asarray(np.where(mask, z, 0), dtype=np.float32)


def _covered(moments: RunningMoments) -> MaskArray:
    """Return the voxels that enough healthy brains cover to have statistics of their own."""
    return np.asarray(moments.count >= max(2, MIN_COVERAGE * moments.n_arrays))


def _covered_mean(moments: RunningMoments) -> FloatArray:
    return np.where(_covered(moments), moments.mean(), 0).astype(np.float32)


def sigma_in_voxels(sigma_mm: float, grid: Geometry) -> tuple[float, float, float]:
    """Return the standard deviation of a Gaussian in voxels along I, J, K."""
    i, j, k = (sigma_mm / s for s in grid.spacing)
    return i, j, k


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
