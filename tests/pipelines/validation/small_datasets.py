from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from pipelines.validation.datasets.digits import load_digits
from pipelines.validation.model_under_test import Candidate, World
from pipelines.validation.reference_classifier import ClassifierSettings, trained_classifier
from pipelines.validation.settings import ValidationSettings

QUICK = {"steps": 400, "channels": 8, "batch_size": 64, "least_accuracy": 0.9}
NAMES = tuple(str(digit) for digit in range(10))


def small_digits(folder: Path) -> World:
    """Return the world of the 8 × 8 digits of scikit-learn, with a classifier that learns in a second."""
    digits = load_digits(None)
    classifier = trained_classifier(digits.train, (10,), ClassifierSettings.model_validate(QUICK), folder)
    return World(digits.train, digits.test, digits.source, {"digit": NAMES}, classifier)


def task(trials: Mapping[str, Any], **others: Any) -> ValidationSettings:
    """Return a small task."""
    values = {"name": "tiny", "world": "mnist", "description": "Tiny.", "classifier": QUICK, "trials": trials}
    return ValidationSettings.parse(values | others, "test")


def candidate(world: World, detector: Any, folder: Path, **exams: int) -> Candidate:
    """Return a candidate whose model is given, not trained."""
    trial = {"model": {"family": "vae"}, "exams": ["generation"], "bars": {"generation.frechet": {"most": 1}}}
    few = {"samples": 300, "neighbours_of": 300, "likelihood_of": 50, "probed": 400} | exams
    settings = task({"fake": trial}, exams=few)
    made = Candidate(world, settings.trials["fake"], settings, folder)
    made.__dict__["detector"] = detector
    return made


class Fake:
    """A model that gives what it is told to give."""

    family = "fake"
    view = ImageView()

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        chosen = torch.randint(len(self.pictures), (n,), generator=rng)
        return self.pictures[chosen][:, None]
