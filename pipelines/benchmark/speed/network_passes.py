"""What a scan costs, counted instead of timed: how often a network runs for one image."""

from __future__ import annotations

import math
from collections import Counter

from torch import Tensor, nn

from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.scoring.maps import raw_evidence
from anomaly.scoring.scorer import Scorer


def network_passes(
    scorer: Scorer, voxels: FloatArray, mask: MaskArray, about: FloatArray = UNKNOWN_COVARIATES
) -> float:
    """Return how often the busiest layer of a model's networks works for each image of a volume.

    0 for a model without a network; 1 for one pass, 2 where the mirrored scan is asked about too; as many as there
    are denoising or restoration steps, where a model takes steps, and noise levels that are restored side by side.
    """
    images: Counter[nn.Module] = Counter()  # that convolutions see: several of one image may be in one call
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
        raw_evidence(detector, voxels, mask, about, settings.batch_size, settings.flip_average)
    finally:
        for hook in hooks:
            hook.remove()
    places = len(detector.view.locations(mask))
    batches = math.ceil(places / settings.batch_size)
    return max(max(images.values(), default=0) / places, max(calls.values(), default=0) / batches)
