"""Load the dataset of a validation task, with its reference classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from anomaly.core.progress import Progress, no_progress
from pipelines.validation.datasets.avatars.dataset import ATTRIBUTE_VALUES, CLASSIFIER_ALPHA, Avatars, in_colour
from pipelines.validation.datasets.avatars.image_bank import hide_invisible, load_image_bank
from pipelines.validation.datasets.digits import Digits, data_folder, load_digits
from pipelines.validation.model_under_test import Dataset
from pipelines.validation.reference_classifier import trained_classifier
from pipelines.validation.settings import ValidationSettings


def load_dataset(
    settings: ValidationSettings, output: Path, fetch: bool = False, progress: Progress = no_progress
) -> Dataset:
    """Return the dataset of a task; its classifier is trained unless ``output`` holds it."""
    return LOADERS[settings.dataset](settings, output, fetch, progress)


def mnist(settings: ValidationSettings, output: Path, fetch: bool, progress: Progress) -> Dataset:
    """Return the handwritten digits of MNIST."""
    return _digits_dataset(load_digits(data_folder(), fetch), settings, output, progress)


def small_digits(settings: ValidationSettings, output: Path, fetch: bool, progress: Progress) -> Dataset:
    """Return the 8 × 8 handwritten digits of scikit-learn."""
    del fetch
    return _digits_dataset(load_digits(None), settings, output, progress)


def avatars(settings: ValidationSettings, output: Path, fetch: bool, progress: Progress) -> Dataset:
    """Return avatars drawn from the distribution of the fifty observed ones."""
    del fetch
    chosen = settings.avatars
    source = Avatars(chosen, load_image_bank(output, chosen.size, progress))
    train, test = source.images("train", chosen.train), source.images("test", chosen.test)
    classes = tuple(len(values) for values in ATTRIBUTE_VALUES.values())
    classifier_train = source.images("classifier", chosen.classifier_train, CLASSIFIER_ALPHA)
    classifier = trained_classifier(classifier_train, classes, settings.classifier, output, progress)
    description = (
        f"{len(train)} + {len(test)} avatars of {chosen.size} × {chosen.size} pixels, "
        "drawn from the attribute distribution of fifty"
    )
    classifier_test = source.images("classifier test", chosen.test, CLASSIFIER_ALPHA)
    return Dataset(
        train,
        test,
        description,
        ATTRIBUTE_VALUES,
        classifier,
        in_colour,
        hide_invisible,
        source,
        classifier_test,
    )


def _digits_dataset(digits: Digits, settings: ValidationSettings, output: Path, progress: Progress) -> Dataset:
    classifier = trained_classifier(digits.train, (10,), settings.classifier, output, progress)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(digits.train, digits.test, digits.source, {"digit": names}, classifier)


LOADERS: Mapping[str, Callable[[ValidationSettings, Path, bool, Progress], Dataset]] = {
    "mnist": mnist,
    "digits": small_digits,
    "avatars": avatars,
}
