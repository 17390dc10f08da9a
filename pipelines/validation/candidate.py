"""A model under examination: the world it learns, how it is trained there, and what an exam finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from anomaly.models.base import Detector, FitRun
from anomaly.models.registry import create
from pipelines.common import Progress, no_progress
from pipelines.validation.classifier import Classifier
from pipelines.validation.images import Pictures
from pipelines.validation.settings import ExamSettings, Trial, TrialSettings, ValidationSettings


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
    tables
        Title → rows, each by column.
    notes
        Sentences for the page.
    """

    measures: dict[str, float]
    pictures: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, list[dict[str, str | float]]] = field(default_factory=dict)
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
    settings
        Those of the task.
    folder
        Where it is trained; a training that is there is continued, or used.
    """

    world: World
    trial: Trial
    settings: ValidationSettings
    folder: Path
    device: str = "cpu"
    progress: Progress = no_progress

    @property
    def model(self) -> TrialSettings:
        """The trial, of a model family.

        Raises
        ------
        ConfigError
            If it is none.
        """
        if not isinstance(self.trial, TrialSettings):
            raise ConfigError(f"found {self.trial.family!r}, which is no model family; leave out this exam")
        return self.trial

    @cached_property
    def seen(self) -> Pictures:
        """The training pictures as the model sees them."""
        return replace(self.world.train, draws=self.model.draws)

    @cached_property
    def unseen(self) -> Pictures:
        """The test pictures as the model sees them."""
        return replace(self.world.test, draws=min(1, self.model.draws))

    @cached_property
    def detector(self) -> Detector:
        """The model, trained on all training pictures."""
        return self.trained(self.seen, self.folder / "training")

    def trained(self, pictures: Pictures, folder: Path, seed: int | None = None) -> Detector:
        """Return the model trained on some pictures, or on these before in the same folder."""
        detector = create(self.model.model_settings(), pictures.grid)
        run = FitRun(folder, self.model.training, seed, device=self.device, progress=self.progress)
        detector.fit(pictures, (), run)
        return detector.eval()

    @property
    def exams(self) -> ExamSettings:
        """How much is measured."""
        return self.settings.exams

    def rng(self, number: int = 0) -> torch.Generator:
        """Return random numbers of an exam."""
        return torch.Generator().manual_seed(self.exams.seed + number)
