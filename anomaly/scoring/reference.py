"""What healthy scans' maps and scores look like, so that evidence is comparable across places.

A cortex that never reconstructs well must not look ill in everybody: in template space the healthy mean of the
signed map is subtracted and the rest divided by its healthy standard deviation, voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anomaly.core.running_moments import RunningMoments
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.acquisition_shift import FEATURES, AcquisitionReference, acquisition_features
from anomaly.scoring.postprocess import smooth_inside
from anomaly.scoring.settings import ScoringSettings

MIN_COVERAGE = 0.25  # a voxel inside fewer of the healthy brains borrows the statistics of its surroundings


@dataclass(frozen=True, eq=False)
class HealthyReference:
    """Statistics of healthy scans on the template grid.

    Parameters
    ----------
    mean, sd
        Map name → float32 ``(I, J, K)`` of the signed, smoothed map; ``sd`` includes its floor and is > 0.
    appearance
        float32 ``(I, J, K)`` mean healthy image, to tell a scan that is something else altogether.
    acquisition
        What scanner and protocol leave in the healthy images, to tell a scan from another one.
    score_centre, score_spread
        Scan score name → mean and SD over healthy scans, to put scores on one scale before combining them.
    held_out_scores
        Scan score name → its values for the same healthy scans, which the detector did not learn from: what an
        ensemble measures this model's scores by. Empty in models of earlier versions.
    """

    mean: Mapping[str, FloatArray]
    sd: Mapping[str, FloatArray]
    appearance: FloatArray
    acquisition: AcquisitionReference
    score_mean: Mapping[str, float] = field(default_factory=dict)
    score_std: Mapping[str, float] = field(default_factory=dict)
    held_out_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def arrays(self) -> dict[str, FloatArray]:
        """Return the voxelwise statistics by name, for saving."""
        means = {f"mean.{name}": values for name, values in self.mean.items()}
        sds = {f"sd.{name}": values for name, values in self.sd.items()}
        return {**means, **sds, "appearance": self.appearance, "acquisition": self.acquisition.features}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, FloatArray],
        score_mean: Mapping[str, float],
        score_std: Mapping[str, float],
        held_out_scores: Mapping[str, Sequence[float]],
    ) -> HealthyReference:
        """Return the reference that :meth:`arrays` was saved from."""
        acquisition = AcquisitionReference(arrays["acquisition"])
        mean, sd = _named(arrays, "mean."), _named(arrays, "sd.")
        return cls(mean, sd, arrays["appearance"], acquisition, score_mean, score_std, held_out_scores)


def similarity(voxels: FloatArray, mask: MaskArray, appearance: FloatArray) -> float:
    """Return the Pearson correlation of a scan with the mean healthy image inside the mask."""
    inside = mask & (appearance > 0)
    if inside.sum() < 2 or voxels[inside].std() == 0:
        return 0.0
    return float(np.corrcoef(voxels[inside], appearance[inside])[0, 1])


def fit_reference(
    scans: Iterable[tuple[Mapping[str, FloatArray], FloatArray, MaskArray]],
    grid: Geometry,
    settings: ScoringSettings,
) -> HealthyReference:
    """Learn the voxelwise mean and SD from healthy scans, one at a time (memory does not grow with them).

    Parameters
    ----------
    scans
        ``(signed maps by name, voxels, mask)`` per scan, each ``(I, J, K)`` on ``grid``, maps filtered.
    """
    moments = {name: RunningMoments(grid.shape) for name in (*settings.maps, "")}
    features = []
    for maps, voxels, mask in scans:
        for name in settings.maps:
            moments[name].add(maps[name], mask)
        moments[""].add(voxels, mask)
        features.append(acquisition_features(voxels, mask))
    appearance = moments.pop("")
    return HealthyReference(
        mean={name: _covered_mean(found) for name, found in moments.items()},
        sd={name: _floored(found, settings.floor_of(name), grid, settings) for name, found in moments.items()},
        appearance=_covered_mean(appearance),
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
    """Return where enough healthy brains reach for a voxel to have statistics of its own."""
    return np.asarray(moments.count >= max(2, MIN_COVERAGE * moments.n_arrays))


def _covered_mean(moments: RunningMoments) -> FloatArray:
    return np.where(_covered(moments), moments.mean(), 0).astype(np.float32)


def sigma_in_voxels(sigma_mm: float, grid: Geometry) -> tuple[float, float, float]:
    """Return a Gaussian's standard deviation in voxels along I, J, K."""
    i, j, k = (sigma_mm / s for s in grid.spacing)
    return i, j, k


def _floored(moments: RunningMoments, share: float, grid: Geometry, settings: ScoringSettings) -> FloatArray:
    """Steady the SD, fill it where brains rarely reach (edges: as uncertain as the worst), and floor it."""
    sd, covered = moments.sd(ddof=1).astype(np.float32), _covered(moments)
    if not covered.any():
        return np.ones_like(sd)
    steadied = smooth_inside(sd, covered, sigma_in_voxels(settings.sd_smoothing_mm, grid))
    filled = np.where(covered, steadied, np.percentile(steadied[covered], 99))
    floor = max(share * float(np.median(sd[covered])), 1e-6)
    return np.asarray(np.sqrt(filled**2 + floor**2), dtype=np.float32)


def _named(arrays: Mapping[str, FloatArray], prefix: str) -> dict[str, FloatArray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
