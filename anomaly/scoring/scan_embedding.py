"""The latent code of a whole scan, computed from the codes of its images.

The code of a scan is the mean code of its images. An axial slice looks different at each height, so a scan of
slices has three means, of the lower, middle and upper third of its slices, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from anomaly.core.volume import FloatArray
from anomaly.models.base import Detector
from anomaly.models.generation import Embedder

SLICE_GROUPS = 3  # lower, middle and upper third of the slices


def embed_scan(detector: Detector, batches: Iterable[tuple[Tensor, Tensor]]) -> FloatArray:
    """Return the latent code ``(D,)`` of a scan, float32, given its images and masks in batches.

    Raises
    ------
    TypeError
        If the detector has no latent code.
    """
    if not isinstance(detector, Embedder):
        raise TypeError(f"the family {detector.family!r} has no latent code; expected a model that can embed")
    with torch.inference_mode():
        codes = [detector.embed(images, masks) for images, masks in batches]
    return _scan_code(codes, detector.view)


def scan_embedding_of(codes: Sequence[Tensor | None], view: ImageView) -> FloatArray | None:
    """Return the latent code ``(D,)`` of a scan from the codes of its batches; None where one of them has none."""
    known = [code for code in codes if code is not None]
    return _scan_code(known, view) if known and len(known) == len(codes) else None


def group_means(codes: FloatArray, groups: int) -> FloatArray:
    """Return the means ``(groups · D,)`` of as many equal groups of codes ``(images, D)``, in order.

    Where there are fewer images than groups, neighbouring groups share one.
    """
    n = len(codes)
    starts = [group * n // groups for group in range(groups)]
    ends = [max(start + 1, (group + 1) * n // groups) for group, start in enumerate(starts)]
    means = [codes[start:end].mean(axis=0) for start, end in zip(starts, ends, strict=True)]
    return np.asarray(np.concatenate(means), dtype=np.float32)


def _scan_code(codes: Sequence[Tensor], view: ImageView) -> FloatArray:
    of_images: list[FloatArray] = [code.float().cpu().numpy() for code in codes]
    return group_means(np.concatenate(of_images), SLICE_GROUPS if view.kind == "slice" else 1)
