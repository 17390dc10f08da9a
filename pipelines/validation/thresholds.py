"""What a measured number must reach, and what every trial has: exams, and bars for what they measure."""

from __future__ import annotations

from pydantic import Field, model_validator

from anomaly.core.config import Settings


class Bar(Settings):
    """What a measured number must reach."""

    least: float | None = None
    most: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Bar:
        if self.least is None and self.most is None:
            raise ValueError("expected least, most, or both")
        return self

    def met_by(self, value: float) -> bool:
        """Return whether a number reaches the bar; NaN reaches none."""
        above = self.least is None or value >= self.least
        return above and (self.most is None or value <= self.most) and value == value

    def __str__(self) -> str:
        sides = [f"≥ {self.least:g}"] if self.least is not None else []
        return " and ".join(sides + ([f"≤ {self.most:g}"] if self.most is not None else []))


class ExaminedSettings(Settings):
    """What is measured of something, and what it must reach."""

    exams: tuple[str, ...] = Field(min_length=1, description="what is measured")
    bars: dict[str, Bar] = Field(min_length=1, description="by exam.measure: what it must reach; without, no trial")
