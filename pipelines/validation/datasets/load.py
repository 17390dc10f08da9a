"""The worlds of the validation tasks, ready to be learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from anomaly.core.progress import Progress, no_progress
from pipelines.validation.datasets.avatars.dataset import FEATURES, SMOOTHED, Avatars, in_colour
from pipelines.validation.datasets.avatars.image_bank import hidden, load_album
from pipelines.validation.datasets.digits import Digits, data_folder, load_digits
from pipelines.validation.model_under_test import World
from pipelines.validation.reference_classifier import trained_classifier
from pipelines.validation.settings import ValidationSettings


def load_world(
    settings: ValidationSettings, output: Path, fetch: bool = False, progress: Progress = no_progress
) -> World:
    """Return the pictures of a task and a classifier of them, which is trained where ``output`` holds none."""
    return WORLDS[settings.world](settings, output, fetch, progress)


def mnist(settings: ValidationSettings, output: Path, fetch: bool, progress: Progress) -> World:
    """Return the handwritten digits of MNIST."""
    return _of_digits(load_digits(data_folder(), fetch), settings, output, progress)


def small_digits(settings: ValidationSettings, output: Path, fetch: bool, progress: Progress) -> World:
    """Return the handwritten digits that come with scikit-learn."""
    del fetch
    return _of_digits(load_digits(None), settings, output, progress)


def _of_digits(digits: Digits, settings: ValidationSettings, output: Path, progress: Progress) -> World:
    classifier = trained_classifier(digits.train, (10,), settings.classifier, output, progress)
    names = tuple(str(digit) for digit in range(10))
    return World(digits.train, digits.test, digits.source, {"digit": names}, classifier)


def avatars(settings: ValidationSettings, output: Path, fetch: bool, progress: Progress) -> World:
    """Return looks drawn from the law of the fifty observed."""
    del fetch
    chosen = settings.avatars
    known = Avatars(chosen, load_album(output, chosen.size, progress))
    train, test = known.looks("train", chosen.train), known.looks("test", chosen.test)
    classes = tuple(len(values) for values in FEATURES.values())
    lesson = known.looks("classifier", chosen.classified, SMOOTHED)
    classifier = trained_classifier(lesson, classes, settings.classifier, output, progress)
    source = (
        f"{len(train)} + {len(test)} looks of {chosen.size} × {chosen.size} pixels, drawn from the law of fifty"
    )
    read_on = known.looks("classifier test", chosen.test, SMOOTHED)
    return World(train, test, source, FEATURES, classifier, in_colour, hidden, known, read_on)


WORLDS: Mapping[str, Callable[[ValidationSettings, Path, bool, Progress], World]] = {
    "mnist": mnist,
    "digits": small_digits,
    "avatars": avatars,
}
