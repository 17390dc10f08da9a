"""What is known of a subject beside the scan, for models that are conditioned on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, field_validator

from anomaly.core.config import Settings
from anomaly.core.volume import FloatArray

_SEXES = {"f": 0.0, "female": 0.0, "m": 1.0, "male": 1.0}


class Covariate(Settings):
    """One thing that is known of a subject, written as one number; NaN where it is not known."""

    name: str = Field(min_length=1, description="what it is called in messages")
    values: int = Field(0, ge=0, description="0: any number; n of 2 or more: one of 0, 1, … n − 1")

    @field_validator("values")
    @classmethod
    def _more_than_one(cls, values: int) -> int:
        if values == 1:
            raise ValueError("a covariate of one value says nothing; give 0 for a number, or 2 values or more")
        return values

    def __str__(self) -> str:
        return f"{self.name} (one of 0 to {self.values - 1})" if self.values else f"{self.name} (a number)"


def _with_names_of_their_own(covariates: tuple[Covariate, ...]) -> tuple[Covariate, ...]:
    if len({covariate.name for covariate in covariates}) < len(covariates):
        raise ValueError(f"each needs a name of its own; found {listed(covariates)}")
    return covariates


Covariates = Annotated[tuple[Covariate, ...], Field(min_length=1), AfterValidator(_with_names_of_their_own)]
"""What a model is told beside the image: one or more covariates, in the order of their numbers."""

AGE_AND_SEX = (Covariate(name="age"), Covariate(name="sex", values=2))
"""What scans come with; see :func:`covariates`."""


def listed(covariates: Iterable[Covariate]) -> str:
    """Return the covariates and what each may be, in one line."""
    return ", ".join(map(str, covariates))


def covariates(age: float | None = None, sex: str = "") -> FloatArray:
    """Return float32 ``(2,)``: age in years, sex (0 female, 1 male); NaN for what is not known."""
    years = math.nan if age is None else age
    return np.array([years, _SEXES.get(sex.strip().lower(), math.nan)], dtype=np.float32)


UNKNOWN_COVARIATES = covariates()
"""Nothing is known of the subject."""
