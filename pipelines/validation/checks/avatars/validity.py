"""Validity of a sampled avatar: the classifier reads its attributes, and it resembles the drawing of these.

The classifier alone is not enough: it labels any image, and is often confident about an image that shows no avatar.
So the attributes that it reads are drawn, and the drawing is compared with the image:

    valid = (P of every visible attribute ≥ 0.9) and (mean (x − drawing)² ≤ 0.01)

Drawings of two combinations drawn from the distribution differ by 0.037 on average. Another accessory makes 0.005,
a white shirt instead of a grey one 0.001, another neckline 0.0005: these differences are left to the classifier.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from pipelines.validation.datasets.avatars.dataset import Avatars
from pipelines.validation.labelled_dataset import NOT_VISIBLE, Labels
from pipelines.validation.model_under_test import Dataset, ModelUnderTest

MIN_CONFIDENCE = 0.9  # probability of an attribute
MAX_MSE = 0.01  # mean squared difference to the drawing of what was read, pixels 0 to 1

Flags = npt.NDArray[np.bool_]


class Validity(NamedTuple):
    """What sampled images show, and how well they resemble the drawing of it.

    Parameters
    ----------
    codes
        ``(N, 5)`` codes of the attributes that are read; −1 for the hair colour where there is no hair.
    confidence
        ``(N,)`` lowest probability among the attributes.
    mse
        ``(N,)`` mean squared difference to the drawing of the attributes that are read.
    drawing
        ``(N, H, W)`` this drawing.
    """

    codes: Labels
    confidence: FloatArray
    mse: FloatArray
    drawing: FloatArray

    @property
    def valid(self) -> Flags:
        """Whether each image is a valid avatar ``(N,)``."""
        return np.asarray((self.confidence >= MIN_CONFIDENCE) & (self.mse <= MAX_MSE))


def assess_validity(dataset: Dataset, pixels: FloatArray) -> Validity:
    """Return what images ``(N, H, W)`` show, and whether they are valid."""
    found = dataset.classify(pixels)
    drawing = avatars_of(dataset).image_bank.mosaics(found.labels)
    return Validity(found.labels, found.confidence, ((pixels - drawing) ** 2).mean(axis=(1, 2)), drawing)


def equal_attributes(first: Labels, second: Labels) -> Flags:
    """Return which attributes ``(N, 5)`` are equal, or not visible in one of the two."""
    return np.asarray((first == second) | (first == NOT_VISIBLE) | (second == NOT_VISIBLE))


def avatars_of(dataset: Dataset) -> Avatars:
    """Return the avatar dataset.

    Raises
    ------
    ConfigError
        If it is another dataset.
    """
    if dataset.avatars is None:
        raise ConfigError("this check is for the dataset avatars; remove it from tasks with other datasets")
    return dataset.avatars


def unsupported(model: ModelUnderTest, check: str, reason: str) -> ConfigError:
    """Return the error for a model that does not support a check."""
    return ConfigError(f"the family {model.detector.family!r} {reason}; remove the check {check}")
