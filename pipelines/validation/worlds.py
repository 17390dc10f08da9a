"""The worlds of the validation tasks, ready to be learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.common import Progress, no_progress
from pipelines.validation.candidate import World
from pipelines.validation.classifier import trained_classifier
from pipelines.validation.digits import Digits, data_folder, load_digits
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


WORLDS: Mapping[str, Callable[[ValidationSettings, Path, bool, Progress], World]] = {
    "mnist": mnist,
    "digits": small_digits,
}
