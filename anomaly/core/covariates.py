"""What is known of a subject beside the scan, for models that are conditioned on it."""

from __future__ import annotations

import math

import numpy as np

from anomaly.core.volume import FloatArray

COVARIATES = ("age", "sex")
_SEXES = {"f": 0.0, "female": 0.0, "m": 1.0, "male": 1.0}


def covariates(age: float | None = None, sex: str = "") -> FloatArray:
    """Return float32 ``(2,)``: age in years, sex (0 female, 1 male); NaN for what is not known."""
    years = math.nan if age is None else age
    return np.array([years, _SEXES.get(sex.strip().lower(), math.nan)], dtype=np.float32)


UNKNOWN = covariates()
"""Nothing is known of the subject."""
