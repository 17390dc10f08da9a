"""A model under examination: the world it learns, how it is trained there, and what an exam finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from anomaly.core.volume import FloatArray
from anomaly.models.base import Detector, FitRun
from anomaly.models.registry import create
from pipelines.common import Progress, no_progress
from pipelines.validation.classifier import Classifier
from pipelines.validation.images import Pictures
from pipelines.validation.settings import ExamSettings, TrialSettings


@dataclass(frozen=True, eq=False)
class World:
    """What is known of the pictures of a task.

    Parameters
    ----------
    train, test
        Pictures to learn from, and others.
    source
        Where they are from, for people.
    features
        Name of each label → the names of its values.
    classifier
        Says what a picture shows.
    shown
        Makes pictures ``(N, H, W)`` into what people look at, ``(N, H', W')`` grey or ``(N, H', W', 3)``, 0 to 1.
    """

    train: Pictures
    test: Pictures
    source: str
    features: Mapping[str, tuple[str, ...]]
    classifier: Classifier
    shown: Callable[[FloatArray], FloatArray] = lambda pixels: pixels


@dataclass(frozen=True)
class Findings:
    """What an exam finds.

    Parameters
    ----------
    measures
        Name → number; what bars may be set for.
    pictures
        Title → PNG.
    notes
        Sentences for the page.
    """

    measures: dict[str, float]
    pictures: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that is examined.

    Parameters
    ----------
    world
        What it learns.
    trial
        Its settings.
    exams
        How much is measured.
    folder
        Where it is trained; a training that is there is continued, or used.
    """

    world: World
    trial: TrialSettings
    exams: ExamSettings
    folder: Path
    device: str = "cpu"
    progress: Progress = no_progress

    @cached_property
    def seen(self) -> Pictures:
        """The training pictures as the model sees them."""
        return replace(self.world.train, draws=self.trial.draws)

    @cached_property
    def unseen(self) -> Pictures:
        """The test pictures as the model sees them."""
        return replace(self.world.test, draws=min(1, self.trial.draws))

    @cached_property
    def detector(self) -> Detector:
        """The model, trained on all training pictures."""
        return self.trained(self.seen, self.folder / "training")

    def trained(self, pictures: Pictures, folder: Path, seed: int | None = None) -> Detector:
        """Return the model trained on some pictures, or on these before in the same folder."""
        detector = create(self.trial.model_settings(), pictures.grid)
        run = FitRun(folder, self.trial.training, seed, device=self.device, progress=self.progress)
        detector.fit(pictures, (), run)
        return detector.eval()

    def rng(self, number: int = 0) -> torch.Generator:
        """Return random numbers of an exam."""
        return torch.Generator().manual_seed(self.exams.seed + number)
