"""Cost of scoring a scan, counted instead of timed: network passes for each image."""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor, nn

from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.scoring.maps import raw_evidence
from anomaly.scoring.scorer import Scorer


def network_passes(
    scorer: Scorer, voxels: FloatArray, mask: MaskArray, covariates: FloatArray = UNKNOWN_COVARIATES
) -> float:
    """Count how often the most used layer of a model's networks runs for each image of a volume.

    A model without a network has 0 passes. One forward pass gives 1, with the mirrored scan 2. A model that
    denoises or restores in steps, or at several noise levels, has that many passes.
    """
    images: Counter[nn.Module] = Counter()  # inputs of convolutions: one call may hold several versions of an image
    calls: Counter[nn.Module] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        del output
        if inputs[0].ndim > 3:
            images[layer] += len(inputs[0])
        else:
            calls[layer] += 1

    detector, settings = scorer.detector, scorer.settings
    layers = [m for m in detector.modules() if any(True for _ in m.parameters(recurse=False))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        raw_evidence(detector, voxels, mask, covariates, settings.batch_size, settings.flip_average)
    finally:
        for hook in hooks:
            hook.remove()
    n_images = len(detector.view.locations(mask))
    batches = math.ceil(n_images / settings.batch_size)
    return max(max(images.values(), default=0) / n_images, max(calls.values(), default=0) / batches)
