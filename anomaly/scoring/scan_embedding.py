"""What a whole scan is like, in a few numbers: the latent codes of its images put together."""

from __future__ import annotations

import numpy as np
import torch

from anomaly.core.volume import FloatArray, MaskArray
from anomaly.models.base import Detector, Embedder
from anomaly.scoring.maps import batches

PARTS = 3  # lower, middle and upper third: what an axial slice shows depends on its height


def scan_code(detector: Detector, voxels: FloatArray, mask: MaskArray, batch_size: int = 16) -> FloatArray:
    """Return the code of a preprocessed volume ``(I, J, K)``, float32.

    The mean code of the images of a scan; of slices, the means of the lower, middle and upper third of them, one
    after the other.

    Raises
    ------
    TypeError
        If the detector has no latent code.
    """
    if not isinstance(detector, Embedder):
        raise TypeError(f"the family {detector.family!r} has no latent code; expected a model that can embed")
    with torch.inference_mode():
        codes: list[FloatArray] = [
            detector.embed(images, masks).float().cpu().numpy()
            for images, masks in batches(detector, voxels, mask, batch_size)
        ]
    return put_together(np.concatenate(codes), PARTS if detector.view.kind == "slice" else 1)


def put_together(codes: FloatArray, parts: int) -> FloatArray:
    """Return the means ``(parts · D,)`` of as many equal parts of codes ``(images, D)``, in order.

    Where there are fewer images than parts, neighbouring parts share one.
    """
    n = len(codes)
    starts = [part * n // parts for part in range(parts)]
    ends = [max(start + 1, (part + 1) * n // parts) for part, start in enumerate(starts)]
    means = [codes[start:end].mean(axis=0) for start, end in zip(starts, ends, strict=True)]
    return np.asarray(np.concatenate(means), dtype=np.float32)
