"""One-class detection: a detector learns one class of images, and must tell all other classes from it.

For each digit, a detector is trained on training images of this digit alone and scores the whole test set. With the
protocol ``one_abnormal`` it is trained on all digits but one, and that one is the anomaly.

The normal training images are split for each digit and seed, so that no image is in two parts:

    train         the detector is trained on them; some of them give mean and SD of its maps
    held out      give the distribution of normal scores, with which an ensemble compares its members' scores
    calibration   give the p-values, and so the threshold for a target false-positive rate
    test          images of the test set; nothing is learnt or chosen on them

Settings are chosen with ``one_class.tuning_split``, which tests on some of the training images instead.

Source: Ruff et al. 2018, "Deep One-Class Classification"; Perera, Nallapati & Xiang 2019, "OCGAN" (the protocol).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomaly.core.errors import InputError
from anomaly.core.progress import Progress, no_progress
from pipelines.validation.baselines.sklearn_detectors import EstimatorEntry, FittedEstimator
from pipelines.validation.cache_keys import (
    NAME_LENGTH,
    SCORING_VERSION,
    key_of,
    key_of_images,
    key_of_training,
)
from pipelines.validation.checks.one_class.result import (
    SCORED_PARTS,
    ClassScores,
    Flags,
    OneClassResult,
    Part,
    Scores,
    load_classes,
    save_classes,
)
from pipelines.validation.datasets.digits import Digits
from pipelines.validation.fit_and_score import fit_scorer, score_images, scores_by_name, train_detector
from pipelines.validation.labelled_dataset import LabelledImages
from pipelines.validation.settings import FamilyEntry, OneClassSettings

TrainableEntry = FamilyEntry | EstimatorEntry

SCORES_FILE = "scores.npz"
TUNING_TEST_DIVISOR = 6  # one in so many training images is a test image of the tuning split


@dataclass(frozen=True, eq=False)
class Parts:
    """Images of one digit and seed; no training image is in two parts.

    Parameters
    ----------
    train, held_out, calibration
        Normal images.
    test
        Normal and abnormal images.
    abnormal
        ``(N,)`` whether each test image is abnormal.
    """

    train: LabelledImages
    held_out: LabelledImages
    calibration: LabelledImages
    test: LabelledImages
    abnormal: Flags

    def scored(self, part: Part) -> LabelledImages:
        """Return the images of one of the parts that are scored."""
        return {"held_out": self.held_out, "calibration": self.calibration, "test": self.test}[part]


def one_class(
    entry: TrainableEntry,
    digits: Digits,
    settings: OneClassSettings,
    folder: Path,
    device: str = "auto",
    progress: Progress = no_progress,
) -> OneClassResult:
    """Train a detector for every class and seed, and score the parts.

    Parameters
    ----------
    entry
        A family of this library, or a detector of scikit-learn.
    digits
        Training and test images with labels.
    settings
        Classes, seeds and sizes of the parts.
    folder
        Keeps trainings and ``scores.npz``; what is stored there under the same cache keys is not computed again.
    device
        Device of the trainings.
    progress
        Called before each class and after the last.

    Raises
    ------
    InputError
        If there are too few images, or a training fails.
    """
    path, keys = folder / SCORES_FILE, _CacheKeys(entry, digits, settings)
    known = {(found.digit, found.seed): (key, found) for key, found in load_classes(path)}
    wanted = [(digit, seed) for seed in settings.seeds for digit in settings.digits]
    for done, (digit, seed) in enumerate(wanted):
        key, found = known.get((digit, seed), ("", None))
        if found is None or key != keys.scores:
            progress(done, len(wanted), f"{entry.family}: digit {digit}, seed {seed}")
            parts = split(digits, digit, seed, settings)
            training = folder / "training" / f"{digit}-{seed}-{keys.training[:NAME_LENGTH]}"
            known[digit, seed] = keys.scores, _class_scores(entry, parts, settings, training, device, digit, seed)
            save_classes(path, list(known.values()))
    progress(len(wanted), len(wanted), f"{entry.family}: done")
    return OneClassResult(declared_score(entry), settings.alphas, tuple(known[key][1] for key in wanted))


def split(digits: Digits, digit: int, seed: int, settings: OneClassSettings) -> Parts:
    """Return the parts of one digit and seed.

    Raises
    ------
    InputError
        If too few images are left to train on, or the test images are all normal or all abnormal.
    """
    rng = np.random.default_rng([seed, digit])
    normal = rng.permutation(np.flatnonzero(~_is_abnormal(digits.train, digit, settings)))
    reserved = settings.calibration + settings.held_out
    if len(normal) < reserved + 2:
        raise InputError(
            f"found {len(normal)} normal training images ({digits.source}); calibration {settings.calibration} "
            f"and held_out {settings.held_out} leave none to train on; lower them"
        )
    level = settings.background_level
    train, test = (_with_background(images, level) for images in (digits.train, digits.test))
    test = test.select(slice(settings.test or None))
    abnormal = _is_abnormal(test, digit, settings)
    if abnormal.all() or not abnormal.any():
        raise InputError(f"found test images of one kind only for digit {digit}; expected normal and abnormal ones")
    return Parts(
        train=train.select(normal[reserved:]),
        held_out=train.select(normal[: settings.held_out]),
        calibration=train.select(normal[settings.held_out : reserved]),
        test=test,
        abnormal=abnormal,
    )


def tuning_split(digits: Digits, seed: int = 0) -> Digits:
    """Return a split of the training images into training and test images, for choosing settings."""
    order = np.random.default_rng(seed).permutation(len(digits.train.pixels))
    test, train = np.split(order, [len(order) // TUNING_TEST_DIVISOR])
    source = f"{digits.source}; tuning split with {len(test)} of the training digits as test images"
    return Digits(digits.train.select(train), digits.train.select(test), source)


def declared_score(entry: TrainableEntry) -> str:
    """Return the name of the score that is evaluated."""
    return entry.scoring.scan_score if isinstance(entry, FamilyEntry) else entry.family


def _class_scores(
    entry: TrainableEntry,
    parts: Parts,
    settings: OneClassSettings,
    training: Path,
    device: str,
    digit: int,
    seed: int,
) -> ClassScores:
    started = time.monotonic()
    if isinstance(entry, FamilyEntry):
        scores = _family_scores(entry, parts, settings, training, device, seed)
    else:
        estimator = FittedEstimator(entry.estimator, parts.train.model_inputs(), seed)
        scores = {part: {entry.family: estimator.score(parts.scored(part).model_inputs())} for part in SCORED_PARTS}
    return ClassScores(digit, seed, parts.abnormal, scores, time.monotonic() - started)


def _family_scores(
    entry: FamilyEntry, parts: Parts, settings: OneClassSettings, training: Path, device: str, seed: int
) -> dict[Part, Scores]:
    detector = train_detector(entry, parts.train, training, device, seed)
    reference = parts.train.select(slice(settings.reference))
    scorer = fit_scorer(detector, entry.scoring, reference, parts.held_out)
    declared = declared_score(entry)
    return {part: scores_by_name(score_images(scorer, parts.scored(part)), declared) for part in SCORED_PARTS}


def _is_abnormal(images: LabelledImages, digit: int, settings: OneClassSettings) -> Flags:
    labels = images.labels[:, 0]
    return np.asarray(labels != digit if settings.protocol == "one_normal" else labels == digit)


def _with_background(images: LabelledImages, level: float) -> LabelledImages:
    return replace(images, pixels=(level + (1 - level) * images.pixels).astype(np.float32))


class _CacheKeys:
    """Cache keys of the trainings, and of the scores, of one model."""

    def __init__(self, entry: TrainableEntry, digits: Digits, settings: OneClassSettings) -> None:
        model = entry.model_dump(mode="json", exclude={"checks", "thresholds", "scoring"})
        fields = {"protocol", "calibration", "held_out", "background_level"}
        splits = settings.model_dump(mode="json", include=fields)
        self.training = key_of_training(entry.family, [model, splits], key_of_images(digits.train))
        scoring = entry.model_dump(mode="json", include={"scoring"})
        scored = settings.model_dump(mode="json", include={"reference", "test"})
        self.scores = key_of(SCORING_VERSION, self.training, scoring, scored, key_of_images(digits.test))
