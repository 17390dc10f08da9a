"""A model under examination: the world it learns, how it is trained there, and what an exam finds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch

from anomaly.core.errors import ConfigError
from anomaly.core.progress import Progress, no_progress
from anomaly.core.volume import FloatArray
from anomaly.models.base import Detector
from anomaly.models.generation import Generator
from anomaly.models.registry import create
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation import cache_keys as fingerprints
from pipelines.validation.baselines.naive_bayes_models import naive_bayes_of
from pipelines.validation.datasets.avatars.dataset import Avatars
from pipelines.validation.labelled_dataset import NOT_SHOWN, Labels, Pictures
from pipelines.validation.reference_classifier import Classifier
from pipelines.validation.sampling import Requests, drawing, in_batches
from pipelines.validation.settings import (
    ExamSettings,
    NaiveBayesTrial,
    Trial,
    TrialSettings,
    ValidationSettings,
)

TELLING = 12  # hex digits of a fingerprint that name a folder
OF_REQUESTS = 50  # looks that may be asked for, to each that is


class Reading(NamedTuple):
    """What the classifier sees in pictures.

    Parameters
    ----------
    labels
        ``(N, F)``, −1 for what pictures of this kind do not show.
    sure
        ``(N,)`` the lowest probability among the labels that a picture shows.
    """

    labels: Labels
    sure: FloatArray


def _as_they_are(labels: Labels) -> Labels:
    return labels


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
    hidden
        Puts −1 where a picture with these labels ``(N, F)`` does not show a feature.
    avatars
        What is known of the world of avatars, where it is that.
    read_on
        Pictures that the accuracy of the classifier is measured on; None = the test pictures.
    """

    train: Pictures
    test: Pictures
    source: str
    features: Mapping[str, tuple[str, ...]]
    classifier: Classifier
    shown: Callable[[FloatArray], FloatArray] = lambda pixels: pixels
    hidden: Callable[[Labels], Labels] = _as_they_are
    avatars: Avatars | None = None
    read_on: Pictures | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of the pictures and of where they are from."""
        pictures = fingerprints.of_pictures(self.train, self.test)
        return fingerprints.of(pictures, self.source)

    def read(self, pixels: FloatArray) -> Reading:
        """Return what pictures ``(N, H, W)`` show."""
        found = self.classifier.probabilities(pixels)
        labels = self.hidden(np.stack([p.argmax(axis=1) for p in found], axis=1))
        highest = np.stack([p.max(axis=1) for p in found], axis=1)
        return Reading(labels, np.where(labels == NOT_SHOWN, 1, highest).min(axis=1))

    def accuracy(self) -> dict[str, float]:
        """Return by label how often the classifier reads rightly what was drawn apart from its training pictures.

        Of avatars most looks occur in both; of digits none does.
        """
        found = self.classifier.accuracy(self.test if self.read_on is None else self.read_on)
        return dict(zip(self.features, found.tolist(), strict=True))


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


class Examined(Protocol):
    """What is examined: a detector, or a model that can only do some of what detectors can."""

    family: ClassVar[str]


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
        return replace(self.world.train, draws=self._draws)

    @cached_property
    def unseen(self) -> Pictures:
        """The test pictures as the model sees them."""
        return replace(self.world.test, draws=min(1, self._draws))

    @cached_property
    def not_learnt(self) -> Pictures:
        """The test pictures that no training picture equals; of avatars, whose looks repeat, about a fifth."""
        known = {hash(picture.tobytes()) for picture in self.world.train.pixels}
        new = [hash(picture.tobytes()) not in known for picture in self.world.test.pixels]
        return self.unseen.select(np.array(new))

    @cached_property
    def detector(self) -> Examined:
        """The model, trained on all training pictures."""
        if isinstance(self.trial, NaiveBayesTrial):
            return naive_bayes_of(self.trial.naive_bayes, self.seen, self.world.avatars)
        return self._trained()

    def drawn(self, exam: str) -> FloatArray:
        """Return pictures ``(N, H, W)`` that the model draws, the same for all exams.

        Raises
        ------
        ConfigError
            If it draws none; it names the exam.
        """
        if not isinstance(self.detector, Generator):
            raise ConfigError(
                f"the family {self.detector.family!r} cannot draw new pictures; leave out the exam {exam}"
            )
        return self._samples

    @cached_property
    def _samples(self) -> FloatArray:
        n, avatars = self.exams.samples, self.world.avatars
        asked = self.seen if avatars is None else Requests(avatars.codes("requests", OF_REQUESTS * n))
        return in_batches(drawing(self.detector, asked, self.rng()), n, self.progress, "drawing")

    def _trained(self) -> Detector:
        """Return the model, from the folder where the same code has trained it on the same pictures before."""
        facts = [self.model.model, self.model.training.model_dump(mode="json")]
        mark = fingerprints.of(facts, fingerprints.of_pictures(self.seen))[:TELLING]
        for folder in self.folder.glob("training/*"):
            if folder.name != mark:
                shutil.rmtree(folder)
        detector = create(self.model.model_settings(), self.seen.grid)
        run = FitRun(
            self.folder / "training" / mark, self.model.training, device=self.device, progress=self.progress
        )
        fit(detector, self.seen, (), run)
        return detector.eval()

    @property
    def _draws(self) -> int:
        return 0 if isinstance(self.trial, NaiveBayesTrial) else self.model.draws

    @property
    def exams(self) -> ExamSettings:
        """How much is measured."""
        return self.settings.exams

    def rng(self, number: int = 0) -> torch.Generator:
        """Return random numbers of an exam."""
        return torch.Generator().manual_seed(self.exams.seed + number)
