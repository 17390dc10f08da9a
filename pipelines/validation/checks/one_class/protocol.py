"""One class is normal, all others are not: how well a family tells pictures of another kind from its own.

For each digit a detector learns from training pictures of that digit alone and scores the whole test set. The other
way round, with ``one_abnormal``, it learns from all digits but one, which is the anomaly.

The training pictures of the normal kind are drawn apart for each digit and seed, so that none is used twice:

    learn         the detector learns from them; some of them give the healthy mean and SD of its maps
    held out      what the scores of normal pictures are like, by which an ensemble measures its members
    calibration   behind the p-values and so behind the promise about false flags
    test          of the test set; nothing is learnt or chosen there

Settings are chosen with ``one_class.rehearsal``, where some of the training pictures play the test set.

Source: Ruff et al. 2018, "Deep One-Class Classification"; Perera, Nallapati & Xiang 2019, "OCGAN" (the protocol).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomaly.core.errors import ConfigError, InputError
from anomaly.core.progress import Progress, no_progress
from anomaly.models.base import Detector
from anomaly.models.registry import create
from anomaly.scoring.scorer import ScoredVolume, Scorer
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation import cache_keys as fingerprints
from pipelines.validation.baselines.sklearn_detectors import EstimatorTrial, FittedEstimator
from pipelines.validation.checks.one_class.result import (
    PARTS,
    ClassScores,
    Flags,
    OneClassResult,
    Part,
    Scores,
    load_classes,
    save_classes,
)
from pipelines.validation.datasets.digits import Digits
from pipelines.validation.labelled_dataset import Pictures, look_at, scored
from pipelines.validation.settings import OneClassSettings, TrialSettings

Learner = TrialSettings | EstimatorTrial

SCORES = "scores.npz"
TRAINING = "training"
TELLING = 12  # hex digits of a hash that name a folder
REHEARSED = 6  # one in so many training pictures plays the test


@dataclass(frozen=True, eq=False)
class Parts:
    """Pictures of one trial; no training picture is in two of its parts.

    Parameters
    ----------
    learn, held_out, calibration
        Normal.
    test
        Of both kinds.
    abnormal
        ``(N,)`` truth about the test pictures.
    """

    learn: Pictures
    held_out: Pictures
    calibration: Pictures
    test: Pictures
    abnormal: Flags

    def of(self, part: Part) -> Pictures:
        """Return the pictures of one of the parts that are scored."""
        return {"held_out": self.held_out, "calibration": self.calibration, "test": self.test}[part]


def one_class(
    trial: Learner,
    digits: Digits,
    settings: OneClassSettings,
    folder: Path,
    device: str = "auto",
    progress: Progress = no_progress,
) -> OneClassResult:
    """Learn and score every class with every seed.

    Parameters
    ----------
    trial
        A family of this library, or a detector of scikit-learn.
    digits
        Training and test pictures with labels.
    settings
        Which classes and seeds.
    folder
        Keeps trainings and ``scores.npz``; what is there already and came from the same settings and pictures is
        not done again.
    device
        That networks are trained on.
    progress
        Called before each class and after the last.

    Raises
    ------
    InputError
        If there are too few pictures, or something goes wrong in training.
    """
    path, prints = folder / SCORES, _Fingerprints(trial, digits, settings)
    known = {(found.digit, found.seed): (mark, found) for mark, found in load_classes(path)}
    wanted = [(digit, seed) for seed in settings.seeds for digit in settings.digits]
    for done, (digit, seed) in enumerate(wanted):
        mark, found = known.get((digit, seed), ("", None))
        if found is None or mark != prints.scores:
            progress(done, len(wanted), f"{trial.family}: digit {digit}, seed {seed}")
            parts = split(digits, digit, seed, settings)
            place = folder / TRAINING / f"{digit}-{seed}-{prints.training[:TELLING]}"
            run = FitRun(place, device=device, seed=seed, resume=True)
            known[digit, seed] = prints.scores, _examined(trial, parts, settings, run, digit)
            save_classes(path, list(known.values()))
    progress(len(wanted), len(wanted), f"{trial.family}: done")
    return OneClassResult(declared(trial), settings.alphas, tuple(known[key][1] for key in wanted))


def split(digits: Digits, digit: int, seed: int, settings: OneClassSettings) -> Parts:
    """Return the parts of one digit and seed.

    Raises
    ------
    InputError
        If too few pictures are left to learn from, or the test has one kind only.
    """
    rng = np.random.default_rng([seed, digit])
    normal = rng.permutation(np.flatnonzero(~_is_abnormal(digits.train, digit, settings)))
    kept = settings.calibration + settings.held_out
    if len(normal) < kept + 2:
        raise InputError(
            f"found {len(normal)} normal training pictures ({digits.source}); calibration {settings.calibration} "
            f"and held_out {settings.held_out} leave none to learn from; lower them"
        )
    train, test = (_on_paper(pictures, settings.paper) for pictures in (digits.train, digits.test))
    test = test.select(slice(settings.test or None))
    abnormal = _is_abnormal(test, digit, settings)
    if abnormal.all() or not abnormal.any():
        raise InputError(
            f"found test pictures of one kind only for digit {digit}; expected normal and abnormal ones"
        )
    return Parts(
        learn=train.select(normal[kept:]),
        held_out=train.select(normal[: settings.held_out]),
        calibration=train.select(normal[settings.held_out : kept]),
        test=test,
        abnormal=abnormal,
    )


def rehearsal(digits: Digits, seed: int = 0) -> Digits:
    """Return training pictures only, some of which play the test: where settings are chosen."""
    order = np.random.default_rng(seed).permutation(len(digits.train.pixels))
    test, train = np.split(order, [len(order) // REHEARSED])
    source = f"{digits.source}; rehearsal on {len(test)} of the training digits"
    return Digits(digits.train.select(train), digits.train.select(test), source)


def declared(trial: Learner) -> str:
    """Return the name of the score that counts."""
    return trial.scoring.scan_score if isinstance(trial, TrialSettings) else trial.family


def _examined(trial: Learner, parts: Parts, settings: OneClassSettings, run: FitRun, digit: int) -> ClassScores:
    started, seed = time.monotonic(), run.seed or 0
    if isinstance(trial, TrialSettings):
        scorer = _learnt(trial, parts, settings, run)
        scores = {part: _by_name(scored(scorer, parts.of(part))) for part in PARTS}
    else:
        estimator = FittedEstimator(trial.estimator, parts.learn.seen(), seed)
        scores = {part: {trial.family: estimator.score(parts.of(part).seen())} for part in PARTS}
    if declared(trial) not in scores["test"]:
        raise ConfigError(f"scan_score {declared(trial)!r} is none of {', '.join(sorted(scores['test']))}")
    return ClassScores(digit, seed, parts.abnormal, scores, time.monotonic() - started)


def _learnt(trial: TrialSettings, parts: Parts, settings: OneClassSettings, run: FitRun) -> Scorer:
    detector: Detector = create(trial.model_settings(), parts.learn.grid)
    fit(detector, parts.learn, (), replace(run, training=trial.training))
    some = parts.learn.select(slice(settings.reference))
    return Scorer(detector, trial.scoring).learn_from(look_at(detector, some), look_at(detector, parts.held_out))


def _by_name(results: Iterable[ScoredVolume]) -> Scores:
    rows = [result.scores for result in results]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _is_abnormal(pictures: Pictures, digit: int, settings: OneClassSettings) -> Flags:
    shown = pictures.labels[:, 0]
    return np.asarray(shown != digit if settings.protocol == "one_normal" else shown == digit)


def _on_paper(pictures: Pictures, paper: float) -> Pictures:
    return replace(pictures, pixels=(paper + (1 - paper) * pictures.pixels).astype(np.float32))


class _Fingerprints:
    """Of all that the trainings, and the scores, of a trial depend on."""

    def __init__(self, trial: Learner, digits: Digits, settings: OneClassSettings) -> None:
        about = trial.model_dump(mode="json", exclude={"exams", "bars", "scoring"})
        drawn = settings.model_dump(mode="json", include={"protocol", "calibration", "held_out", "paper"})
        self.training = fingerprints.of(about, drawn, fingerprints.of_pictures(digits.train))
        scoring = trial.model_dump(mode="json", include={"scoring"})
        looked = settings.model_dump(mode="json", include={"reference", "test"})
        self.scores = fingerprints.of(self.training, scoring, looked, fingerprints.of_pictures(digits.test))
