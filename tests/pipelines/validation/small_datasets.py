from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from pipelines.validation.datasets.digits import load_digits
from pipelines.validation.model_under_test import Dataset, ModelUnderTest
from pipelines.validation.reference_classifier import ClassifierSettings, trained_classifier
from pipelines.validation.settings import ValidationSettings

QUICK = {"steps": 400, "channels": 8, "batch_size": 64, "min_accuracy": 0.9}
NAMES = tuple(str(digit) for digit in range(10))


def small_digits(folder: Path) -> Dataset:
    """Return the dataset of the 8 × 8 digits of scikit-learn, with a classifier that learns in a second."""
    digits = load_digits(None)
    classifier = trained_classifier(digits.train, (10,), ClassifierSettings.model_validate(QUICK), folder)
    return Dataset(digits.train, digits.test, digits.source, {"digit": NAMES}, classifier)


def task(models: Mapping[str, Any], **others: Any) -> ValidationSettings:
    """Return a small task."""
    values = {"name": "tiny", "dataset": "mnist", "description": "Tiny.", "classifier": QUICK, "models": models}
    return ValidationSettings.parse(values | others, "test")


def under_test(dataset: Dataset, detector: Any, folder: Path, **checks: int) -> ModelUnderTest:
    """Return a model under test that is given, not trained."""
    entry = {"model": {"family": "vae"}, "checks": ["generation"], "thresholds": {"generation.frechet": {"max": 1}}}
    few = {"samples": 300, "neighbour_images": 300, "likelihood_images": 50, "code_images": 400} | checks
    settings = task({"fake": entry}, checks=few)
    made = ModelUnderTest(dataset, settings.models["fake"], settings, folder)
    made.__dict__["detector"] = detector
    return made


class Fake:
    """A model that samples from given images."""

    family = "fake"
    view = ImageView()

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        selected = torch.randint(len(self.images), (n,), generator=rng)
        return self.images[selected][:, None]
