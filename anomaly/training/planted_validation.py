"""How well planted lesions stand out: the number that chooses a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from sklearn.metrics import average_precision_score

from anomaly.cohort.synthetic import PlantedScan
from anomaly.core.image_views import Array
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.models.components.network import NetworkDetector
from anomaly.training.batches import Place

IMAGES_AT_ONCE = 16
FEWEST_TO_STANDARDISE = 5


def planted_precision(detector: NetworkDetector, scans: Sequence[PlantedScan], device: torch.device) -> float:
    """Return the mean over scans of the voxel average precision of the residual's size inside the mask, 0 to 1.

    With enough scans the residual is first standardised voxelwise by its healthy mean and SD, as scoring does:
    a place that never rebuilds well must not look ill. The scans serve as each other's healthy reference, each
    outside its own lesion, so it costs no further forward pass.
    """
    residuals = np.stack([residual_volume(detector, scan, device) for scan in scans])
    if len(scans) >= FEWEST_TO_STANDARDISE:
        healthy = np.stack([scan.mask & ~scan.lesion for scan in scans])
        residuals = standardised(residuals, healthy)
    precisions = []
    for scan, residual in zip(scans, residuals, strict=True):
        inside = np.asarray(scan.mask, dtype=bool)
        precisions.append(average_precision_score(scan.lesion[inside], np.abs(residual[inside])))
    return min(1.0, float(np.mean(precisions)))  # rounding may leave it above 1


def standardised(values: FloatArray, healthy: MaskArray) -> FloatArray:
    """Return values ``(N, I, J, K)`` minus their voxelwise healthy mean, over the healthy SD plus half its median.

    The variance is smoothed over three voxels along each axis, because there are few scans.
    """
    count = np.maximum(healthy.sum(axis=0), 1)
    mean = (values * healthy).sum(axis=0) / count
    variance = (((values - mean) ** 2) * healthy).sum(axis=0) / count
    sd = np.sqrt(np.maximum(uniform_filter(variance, 3), 0))  # rounding may leave it below 0
    floor = 0.5 * np.median(sd[healthy.any(axis=0)]) + 1e-6
    return np.asarray((values - mean) / (sd + floor), dtype=np.float32)


@torch.inference_mode()
def residual_volume(detector: NetworkDetector, scan: PlantedScan, device: torch.device) -> FloatArray:
    """Return the signed residual ``(I, J, K)`` of one scan."""
    about = torch.from_numpy(scan.covariates).to(device)

    def pieces() -> Iterator[tuple[Place, Array]]:
        places = detector.view.locations(scan.mask)
        for start in range(0, len(places), IMAGES_AT_ONCE):
            some = places[start : start + IMAGES_AT_ONCE]
            images = np.stack([detector.view.cut(scan.voxels, place) for place in some])
            masks = np.stack([detector.view.target_slice(scan.mask, place) for place in some])
            evidence = detector.evidence_given(
                torch.from_numpy(np.ascontiguousarray(images)).to(device),
                torch.from_numpy(masks).to(device),
                about.expand(len(some), -1),
            )
            yield from zip(some, evidence.maps["residual"].float().cpu().numpy(), strict=True)

    return detector.view.assemble(scan.voxels.shape, pieces())
