"""Connected components of masks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from anomaly.core.volume import MaskArray


def largest_component(mask: MaskArray) -> MaskArray:
    """Return the largest face-connected component of a mask ``(I, J, K)``; an empty mask stays empty."""
    labels, n_components = ndimage.label(mask)
    return mask if n_components < 2 else np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())
