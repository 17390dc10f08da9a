"""Settings of the avatar dataset, and of naive Bayes on it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from anomaly.calibration.conformal import required_healthy
from anomaly.core.config import Settings


class AvatarSettings(Settings):
    """Numbers and size of the avatar images; all are drawn from the distribution of the fifty observed ones."""

    size: Literal[32, 64, 128] = Field(32, description="pixels along the edge of an image, before it is a mosaic")
    train: int = Field(2000, ge=100, description="images that models are trained on")
    test: int = Field(1000, ge=100, description="test images")
    classifier_train: int = Field(
        10000, ge=100, description="images of the smoothed distribution that the classifier is trained on"
    )
    reference: int = Field(500, ge=2, description="training images that give mean and SD of the maps")
    held_out: int = Field(200, ge=3, description="images that give the distribution of normal scores")
    calibration: int = Field(500, ge=1, description="images that the p-values are computed from")
    out_of_distribution: int = Field(300, ge=3, description="images with an attribute outside the distribution")
    alphas: tuple[float, ...] = Field((0.05, 0.1), min_length=1, description="target false-positive rates")
    seed: int = Field(0, ge=0, description="seed of the attributes that are drawn")

    @model_validator(mode="after")
    def _has_enough_calibration_images(self) -> AvatarSettings:
        needed = required_healthy(min(self.alphas))
        if self.calibration < needed:
            raise ValueError(f"alpha {min(self.alphas):g} needs calibration {needed}, found {self.calibration}")
        return self


class NaiveBayesSettings(Settings):
    """What naive Bayes takes as independent, and how it is smoothed."""

    of: Literal["features", "pixels"] = Field(description="what it takes as independent")
    alpha: float = Field(0.0, ge=0, description="added to each count; 0 = maximum likelihood")
    levels: int = Field(16, ge=2, le=256, description="pixels: number of grey levels")
