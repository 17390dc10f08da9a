"""Covariates of a subject, such as age and sex, for models that are conditioned on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, field_validator

from anomaly.core.config import Settings
from anomaly.core.volume import FloatArray

_SEX_CODES = {"f": 0.0, "female": 0.0, "m": 1.0, "male": 1.0}


class Covariate(Settings):
    """The definition of one covariate: a number per subject, NaN where it is unknown."""

    name: str = Field(min_length=1, description="name in messages")
    values: int = Field(
        0, ge=0, description="0: a continuous number; n of 2 or more: a category, one of 0, 1, … n − 1"
    )

    @field_validator("values")
    @classmethod
    def _check_values(cls, values: int) -> int:
        if values == 1:
            raise ValueError("a covariate of one value is constant; give 0 for a number, or 2 values or more")
        return values

    def __str__(self) -> str:
        return f"{self.name} (one of 0 to {self.values - 1})" if self.values else f"{self.name} (a number)"


def _with_unique_names(covariates: tuple[Covariate, ...]) -> tuple[Covariate, ...]:
    if len({covariate.name for covariate in covariates}) < len(covariates):
        raise ValueError(f"each covariate needs a unique name; found {format_covariates(covariates)}")
    return covariates


Covariates = Annotated[tuple[Covariate, ...], Field(min_length=1), AfterValidator(_with_unique_names)]
"""The covariates that a model is conditioned on: one or more, in the order of their numbers."""

AGE_AND_SEX = (Covariate(name="age"), Covariate(name="sex", values=2))
"""The covariates of scans; see :func:`covariates`."""


def format_covariates(covariates: Iterable[Covariate]) -> str:
    """Return covariates and their possible values in one line of text."""
    return ", ".join(map(str, covariates))


def covariates(age: float | None = None, sex: str = "") -> FloatArray:
    """Return float32 ``(2,)``: age in years, and sex (0 female, 1 male); NaN where unknown."""
    years = math.nan if age is None else age
    return np.array([years, _SEX_CODES.get(sex.strip().lower(), math.nan)], dtype=np.float32)


OLDEST_REPORTED_AGE = 90.0
"""Older subjects count as this old in results: HIPAA counts an age over 89 among what identifies a person.

See 45 CFR 164.514(b)(2)(i)(C): such ages may be joined in one category "90 or older".
"""


def reported_age(age: float | None) -> float | None:
    """Return an age as results name it: whole years, 90 for 90 and older; None where unknown."""
    if age is None or math.isnan(age):
        return None
    return float(math.floor(min(age, OLDEST_REPORTED_AGE)))


def years_text(age: float) -> str:
    """Return a reported age as text, e.g. ``"78 years"``."""
    return f"{age:.0f} years or older" if age >= OLDEST_REPORTED_AGE else f"{age:.0f} years"


UNKNOWN_COVARIATES = covariates()
"""The covariates of a subject of unknown age and sex."""
