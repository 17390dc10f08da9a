"""What healthy scans' maps and scores look like, so that evidence is comparable across places.

A cortex that never reconstructs well must not look ill in everybody: in template space the healthy mean of the
signed map is subtracted and the rest divided by its healthy standard deviation, voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.postprocess import smooth_inside
from anomaly.scoring.settings import ScoringSettings

MIN_COVERAGE = 0.25  # a voxel inside fewer of the healthy brains borrows the statistics of its surroundings


@dataclass(frozen=True, eq=False)
class HealthyReference:
    """Statistics of healthy scans on the template grid.

    Parameters
    ----------
    mean, sd
        float32 ``(I, J, K)`` of the signed, smoothed map; ``sd`` includes its floor and is > 0 everywhere.
    appearance
        float32 ``(I, J, K)`` mean healthy image, to tell a scan that is something else altogether.
    score_centre, score_spread
        Scan score name → mean and SD over healthy scans, to put scores on one scale before combining them.
    """

    mean: FloatArray
    sd: FloatArray
    appearance: FloatArray
    score_centre: Mapping[str, float] = field(default_factory=dict)
    score_spread: Mapping[str, float] = field(default_factory=dict)

    def arrays(self) -> dict[str, FloatArray]:
        """Return the voxelwise statistics by name, for saving."""
        return {"mean": self.mean, "sd": self.sd, "appearance": self.appearance}


def similarity(voxels: FloatArray, mask: MaskArray, appearance: FloatArray) -> float:
    """Return the Pearson correlation of a scan with the mean healthy image inside the mask."""
    inside = mask & (appearance > 0)
    if inside.sum() < 2 or voxels[inside].std() == 0:
        return 0.0
    return float(np.corrcoef(voxels[inside], appearance[inside])[0, 1])


def fit_reference(
    scans: Iterable[tuple[FloatArray, FloatArray, MaskArray]], grid: Geometry, settings: ScoringSettings
) -> HealthyReference:
    """Learn the voxelwise mean and SD from healthy scans, one at a time (memory does not grow with them).

    Parameters
    ----------
    scans
        ``(smoothed signed map, voxels, mask)`` per scan, each ``(I, J, K)`` on ``grid``.
    """
    count, total, squares, appearance = (np.zeros(grid.shape, dtype=np.float64) for _ in range(4))
    n = 0
    for signed, voxels, mask in scans:
        n += 1
        count += mask
        total += np.where(mask, signed, 0)
        squares += np.where(mask, np.square(signed, dtype=np.float64), 0)
        appearance += np.where(mask, voxels, 0)
    covered = count >= max(2, MIN_COVERAGE * n)
    mean = np.where(covered, total / np.maximum(count, 1), 0)
    variance = np.maximum(squares / np.maximum(count, 1) - mean**2, 0) * count / np.maximum(count - 1, 1)
    return HealthyReference(
        mean=mean.astype(np.float32),
        sd=_floored(np.sqrt(variance).astype(np.float32), covered, grid, settings),
        appearance=np.where(covered, appearance / np.maximum(count, 1), 0).astype(np.float32),
    )


def standardised(signed: FloatArray, mask: MaskArray, reference: HealthyReference) -> FloatArray:
    """Return ``(signed − healthy mean) / healthy SD`` inside the mask, in standard deviations."""
    return np.where(mask, (signed - reference.mean) / reference.sd, np.float32(0)).astype(np.float32)


def sigma_in_voxels(sigma_mm: float, grid: Geometry) -> tuple[float, float, float]:
    """Return a Gaussian's standard deviation in voxels along I, J, K."""
    i, j, k = (sigma_mm / s for s in grid.spacing)
    return i, j, k


def _floored(sd: FloatArray, covered: MaskArray, grid: Geometry, settings: ScoringSettings) -> FloatArray:
    """Steady the SD, fill it where brains rarely reach (edges: as uncertain as the worst), and floor it."""
    if not covered.any():
        return np.ones_like(sd)
    steadied = smooth_inside(sd, covered, sigma_in_voxels(settings.sd_smoothing_mm, grid))
    filled = np.where(covered, steadied, np.percentile(steadied[covered], 99))
    floor = max(settings.sd_floor * float(np.median(sd[covered])), 1e-6)
    return np.asarray(np.sqrt(filled**2 + floor**2), dtype=np.float32)
