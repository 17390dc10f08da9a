"""How well planted lesions stand out in held-out healthy scans: the number that chooses the checkpoint.

Longer training can teach a denoiser to copy lesions, so the training loss cannot choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score

from anomaly.cohort.planted_lesions import PlantedScan
from anomaly.core.running_moments import RunningMoments
from anomaly.core.volume import FloatArray
from anomaly.models.base import Detector
from anomaly.scoring.maps import raw_evidence
from anomaly.scoring.reference import floored_sd
from anomaly.scoring.settings import ScoringSettings

MIN_SCANS_TO_STANDARDISE = 5


def planted_precision(detector: Detector, scans: Sequence[PlantedScan]) -> float:
    """Return the mean voxel average precision of the residual's magnitude inside the mask, 0 to 1.

    With enough scans the residual is first standardised voxelwise by its healthy mean and SD, as scoring does.
    The scans serve as each other's healthy reference, each outside its own lesion, so this needs no further
    forward pass.
    """
    residuals = [raw_evidence(detector, scan.voxels, scan.mask, scan.covariates).maps["residual"] for scan in scans]
    if len(scans) >= MIN_SCANS_TO_STANDARDISE:
        residuals = standardised_residuals(detector, residuals, scans)
    precisions = [
        average_precision_score(scan.lesion[scan.mask], np.abs(residual[scan.mask]))
        for scan, residual in zip(scans, residuals, strict=True)
    ]
    return min(1.0, float(np.mean(precisions)))  # rounding may leave it above 1


def standardised_residuals(
    detector: Detector, residuals: Sequence[FloatArray], scans: Sequence[PlantedScan]
) -> list[FloatArray]:
    """Return residuals ``(I, J, K)`` minus their voxelwise healthy mean, over the healthy SD of scoring."""
    moments = RunningMoments(detector.grid.shape)
    for residual, scan in zip(residuals, scans, strict=True):
        moments.add(residual, scan.mask & ~scan.lesion)
    settings = ScoringSettings()
    mean, sd = moments.mean(), floored_sd(moments, settings.floor_of("residual"), detector.grid, settings)
    return [np.asarray((residual - mean) / sd, dtype=np.float32) for residual in residuals]
