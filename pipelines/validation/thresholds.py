"""Thresholds for measured numbers, and the settings that every model under test has: its checks and thresholds."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from anomaly.core.config import Settings


class Threshold(Settings):
    """The range in which a measured number must lie.

    Parameters
    ----------
    min, max
        Lowest and highest value that passes; None = no limit on this side.
    """

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _has_a_limit(self) -> Threshold:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max, or both")
        return self

    def is_met_by(self, value: float) -> bool:
        """Return whether a number lies in the range; NaN never does."""
        above = self.min is None or value >= self.min
        return above and (self.max is None or value <= self.max) and not math.isnan(value)

    def __str__(self) -> str:
        sides = [f"≥ {self.min:g}"] if self.min is not None else []
        return " and ".join(sides + ([f"≤ {self.max:g}"] if self.max is not None else []))


class CheckedEntry(Settings):
    """Which checks a model under test runs, and the thresholds for what they measure."""

    checks: tuple[str, ...] = Field(min_length=1, description="names of the checks")
    thresholds: dict[str, Threshold] = Field(
        min_length=1, description="CHECK.MEASURE → range it must lie in; at least one"
    )
