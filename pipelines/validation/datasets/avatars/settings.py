"""What can be set about the world of avatars, and about naive Bayes in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from anomaly.calibration.conformal import required_healthy
from anomaly.core.config import Settings


class AvatarSettings(Settings):
    """The looks of the world of avatars, all drawn from the law of the fifty observed."""

    size: Literal[32, 64, 128] = Field(32, description="pixels along the edge of a picture, before it is a mosaic")
    train: int = Field(2000, ge=100, description="looks that models learn from")
    test: int = Field(1000, ge=100, description="other looks")
    classified: int = Field(10000, ge=100, description="looks of the smoothed law that the classifier learns from")
    reference: int = Field(500, ge=2, description="training looks that give mean and SD of maps")
    held_out: int = Field(200, ge=3, description="looks that show what normal scores are")
    calibration: int = Field(500, ge=1, description="looks behind the p-values")
    outside: int = Field(300, ge=3, description="looks from outside the law")
    alphas: tuple[float, ...] = Field((0.05, 0.1), min_length=1, description="promised false-flag rates")
    seed: int = Field(0, ge=0, description="seed of what is drawn")

    @model_validator(mode="after")
    def _can_keep_its_promises(self) -> AvatarSettings:
        needed = required_healthy(min(self.alphas))
        if self.calibration < needed:
            raise ValueError(f"alpha {min(self.alphas):g} needs calibration {needed}, found {self.calibration}")
        return self


class NaiveBayesSettings(Settings):
    """What naive Bayes is naive about."""

    of: Literal["features", "pixels"] = Field(description="what it takes as independent")
    alpha: float = Field(0.0, ge=0, description="added to each count; 0 = maximum likelihood")
    levels: int = Field(16, ge=2, le=256, description="pixels: grey levels that are told apart")
