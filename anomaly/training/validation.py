"""How well planted lesions stand out: the number that chooses a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from anomaly.core.views import Array
from anomaly.core.volume import FloatArray
from anomaly.training.protocols import LabelledScan, Learner
from anomaly.training.stream import Place

IMAGES_AT_ONCE = 16


def planted_precision(learner: Learner, scans: Sequence[LabelledScan], device: torch.device) -> float:
    """Return the mean over scans of the voxel average precision of |residual| inside the mask, 0 to 1."""
    precisions = []
    for scan in scans:
        residual = residual_volume(learner, scan, device)
        inside = np.asarray(scan.mask, dtype=bool)
        precisions.append(average_precision_score(scan.lesion[inside], np.abs(residual[inside])))
    return float(np.mean(precisions))


@torch.inference_mode()
def residual_volume(learner: Learner, scan: LabelledScan, device: torch.device) -> FloatArray:
    """Return the signed residual ``(I, J, K)`` of one scan."""

    def pieces() -> Iterator[tuple[Place, Array]]:
        places = learner.view.places(scan.mask)
        for start in range(0, len(places), IMAGES_AT_ONCE):
            some = places[start : start + IMAGES_AT_ONCE]
            images = np.stack([learner.view.cut(scan.voxels, place) for place in some])
            masks = np.stack([learner.view.target(scan.mask, place) for place in some])
            evidence = learner.evidence(
                torch.from_numpy(np.ascontiguousarray(images)).to(device), torch.from_numpy(masks).to(device)
            )
            yield from zip(some, evidence.maps["residual"].float().cpu().numpy(), strict=True)

    return learner.view.assemble(scan.voxels.shape, pieces())
