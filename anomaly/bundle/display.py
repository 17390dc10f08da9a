"""The scales of the images in reports, which are the same for every scan of a model."""

from __future__ import annotations

import numpy as np

from anomaly.core.errors import BundleError
from anomaly.preprocessing.intensity import IntensitySettings
from anomaly.scoring.scorer import Scorer


def display_scale(scorer: Scorer, intensity: IntensitySettings) -> dict[str, float]:
    """Return the intensity scales of report images, which are the same for every scan of a model.

    CT is drawn in its whole window: haemorrhage is much denser than any healthy brain.

    Raises
    ------
    BundleError
        The scorer has no healthy reference.
    """
    reference = scorer.reference
    if reference is None:
        raise BundleError("the scorer has no healthy reference; call learn_reference first")
    evidence_typical = reference.score_mean.get("reconstruction_p99", 1.0)
    if intensity.range_hu is not None:
        low, high = intensity.range_hu
        return {"intensity_max": 1.0, "evidence_typical": evidence_typical, "hu_min": low, "hu_max": high}
    seen = reference.mean_image[reference.mean_image > 0]
    return {"intensity_max": float(np.percentile(seen, 99.5)), "evidence_typical": evidence_typical}
