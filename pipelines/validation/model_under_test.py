"""A model under test: the dataset it learns, its training there, and what a check returns."""

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
from pipelines.validation.baselines.naive_bayes_models import fit_naive_bayes
from pipelines.validation.cache_keys import NAME_LENGTH, key_of_images, key_of_training
from pipelines.validation.datasets.avatars.dataset import Avatars
from pipelines.validation.fit_and_score import train_detector
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages, Labels
from pipelines.validation.reference_classifier import Classifier
from pipelines.validation.sampling import Conditions, sample_in_batches, sampler
from pipelines.validation.settings import (
    CheckSettings,
    FamilyEntry,
    ModelEntry,
    NaiveBayesEntry,
    ValidationSettings,
)

CONDITIONS_PER_SAMPLE = 50  # avatars: conditions to choose from, for each image that is sampled


class Classification(NamedTuple):
    """Labels that the reference classifier gives to images.

    Parameters
    ----------
    labels
        ``(N, F)``, −1 where images with these labels do not show an attribute.
    confidence
        ``(N,)`` lowest probability among the visible attributes.
    """

    labels: Labels
    confidence: FloatArray


def _unchanged(labels: Labels) -> Labels:
    return labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """The images of a task, their attributes, and the reference classifier.

    Parameters
    ----------
    train, test
        Training and test images.
    source
        Where the images are from, for the report.
    attributes
        Name of each attribute → names of its values.
    classifier
        Labels generated images.
    to_display
        Converts images ``(N, H, W)`` for display, ``(N, H', W')`` grey or ``(N, H', W', 3)`` colour, 0 to 1.
    hide_invisible
        Sets labels ``(N, F)`` to −1 where an image with these labels does not show an attribute.
    avatars
        The avatar dataset; None for other datasets.
    classifier_test
        Images on which the accuracy of the classifier is measured; None = the test images.
    """

    train: LabelledImages
    test: LabelledImages
    source: str
    attributes: Mapping[str, tuple[str, ...]]
    classifier: Classifier
    to_display: Callable[[FloatArray], FloatArray] = lambda pixels: pixels
    hide_invisible: Callable[[Labels], Labels] = _unchanged
    avatars: Avatars | None = None
    classifier_test: LabelledImages | None = None

    @cached_property
    def cache_key(self) -> str:
        """Hash of the training and test images."""
        return key_of_images(self.train, self.test)

    def classify(self, pixels: FloatArray) -> Classification:
        """Return the labels of images ``(N, H, W)``, and how confident the classifier is."""
        probabilities = self.classifier.probabilities(pixels)
        labels = self.hide_invisible(np.stack([p.argmax(axis=1) for p in probabilities], axis=1))
        highest = np.stack([p.max(axis=1) for p in probabilities], axis=1)
        return Classification(labels, np.where(labels == NOT_VISIBLE, 1, highest).min(axis=1))

    def classifier_accuracy(self) -> dict[str, float]:
        """Return attribute → accuracy of the classifier on images that it was not trained on.

        Most combinations of avatar attributes occur in both sets; no digit does.
        """
        images = self.test if self.classifier_test is None else self.classifier_test
        return dict(zip(self.attributes, self.classifier.accuracy(images).tolist(), strict=True))


@dataclass(frozen=True)
class CheckResult:
    """What a check measured.

    Parameters
    ----------
    measures
        Name → number; thresholds are set for these.
    images
        Title → PNG.
    tables
        Title → rows, each by column.
    notes
        Sentences for the report.
    """

    measures: dict[str, float]
    images: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, list[dict[str, str | float]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class TrainedModel(Protocol):
    """A trained model: a detector, or a model that can do only some of what detectors can."""

    family: ClassVar[str]


@dataclass(frozen=True, eq=False)
class ModelUnderTest:
    """A model under test.

    Parameters
    ----------
    dataset
        What it is trained on.
    entry
        Its settings.
    task
        Settings of the whole task.
    folder
        Keeps its training; a training that is there is continued, or loaded.
    """

    dataset: Dataset
    entry: ModelEntry
    task: ValidationSettings
    folder: Path
    device: str = "cpu"
    progress: Progress = no_progress

    @property
    def family_entry(self) -> FamilyEntry:
        """The entry, if it is of a model family.

        Raises
        ------
        ConfigError
            If it is not.
        """
        if not isinstance(self.entry, FamilyEntry):
            raise ConfigError(f"found {self.entry.family!r}, which is no model family; remove this check")
        return self.entry

    @cached_property
    def train_images(self) -> LabelledImages:
        """The training images as the model gets them."""
        return replace(self.dataset.train, binarisations=self._binarisations)

    @cached_property
    def test_images(self) -> LabelledImages:
        """The test images as the model gets them."""
        return replace(self.dataset.test, binarisations=min(1, self._binarisations))

    @cached_property
    def novel_test_images(self) -> LabelledImages:
        """The test images that equal no training image; of avatars, whose attributes repeat, about a fifth."""
        known = {hash(image.tobytes()) for image in self.dataset.train.pixels}
        novel = [hash(image.tobytes()) not in known for image in self.dataset.test.pixels]
        return self.test_images.select(np.array(novel))

    @cached_property
    def detector(self) -> TrainedModel:
        """The model, trained on all training images."""
        if isinstance(self.entry, NaiveBayesEntry):
            return fit_naive_bayes(self.entry.naive_bayes, self.train_images, self.dataset.avatars)
        return self._trained()

    @property
    def training_key(self) -> str:
        """Cache key of the training on all training images."""
        if isinstance(self.entry, FamilyEntry):
            settings = [self.entry.model, self.entry.training.model_dump(mode="json")]
        else:
            settings = [self.entry.model_dump(mode="json", exclude={"checks", "thresholds", "scoring"})]
        return key_of_training(self.entry.family, settings, key_of_images(self.train_images))

    def samples(self, check: str) -> FloatArray:
        """Return images ``(N, H, W)`` that the model samples, the same for all checks.

        Raises
        ------
        ConfigError
            If it samples none; names the check.
        """
        if not isinstance(self.detector, Generator):
            raise ConfigError(f"the family {self.detector.family!r} cannot sample images; remove the check {check}")
        return self._samples

    @cached_property
    def _samples(self) -> FloatArray:
        n, avatars = self.settings.samples, self.dataset.avatars
        conditions = (
            self.train_images
            if avatars is None
            else Conditions(avatars.codes("conditions", CONDITIONS_PER_SAMPLE * n))
        )
        return sample_in_batches(sampler(self.detector, conditions, self.rng()), n, self.progress, "sampling")

    def _trained(self) -> Detector:
        """Return the model, from its folder if it was trained there under the same key."""
        key = self.training_key[:NAME_LENGTH]
        for folder in self.folder.glob("training/*"):
            if folder.name != key:
                shutil.rmtree(folder)
        folder = self.folder / "training" / key
        entry = self.family_entry
        return train_detector(entry, self.train_images, folder, self.device, progress=self.progress).eval()

    @property
    def _binarisations(self) -> int:
        return 0 if isinstance(self.entry, NaiveBayesEntry) else self.family_entry.binarisations

    @property
    def settings(self) -> CheckSettings:
        """How many images the checks use."""
        return self.task.checks

    def rng(self, number: int = 0) -> torch.Generator:
        """Return the random numbers of a check."""
        return torch.Generator().manual_seed(self.settings.seed + number)
