"""When is a generated picture a look? Where the classifier reads one in it, and that look's picture is like it.

The classifier alone is no judge: it must answer, whatever it is shown, and is often sure of what is nothing. So
what it reads is drawn, and compared with the picture it was read from:

    valid = (P of every feature that is shown ≥ 0.9) and (mean (x − picture of the look)² ≤ 0.01)

Pictures of two looks drawn from the law are 0.037 apart by this measure. Another accessory is 0.005, a white shirt
in place of a grey one 0.001, another neckline 0.0005: those are for the classifier to see.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from pipelines.validation.datasets.avatars.dataset import Avatars
from pipelines.validation.labelled_dataset import NOT_SHOWN, Labels
from pipelines.validation.model_under_test import Candidate, World

SURE = 0.9  # probability of a feature that counts as read
LIKE = 0.01  # mean squared difference to the picture of what was read, pixels 0 to 1

Flags = npt.NDArray[np.bool_]


class Judged(NamedTuple):
    """What generated pictures show.

    Parameters
    ----------
    rows
        ``(N, 5)`` codes of the looks that are read; −1 where there is no hair.
    sure
        ``(N,)`` the lowest probability among the features.
    error
        ``(N,)`` mean squared difference to the picture of the look that was read.
    truth
        ``(N, H, W)`` that picture.
    """

    rows: Labels
    sure: FloatArray
    error: FloatArray
    truth: FloatArray

    @property
    def valid(self) -> Flags:
        """Which pictures are looks."""
        return np.asarray((self.sure >= SURE) & (self.error <= LIKE))


def judged(world: World, pixels: FloatArray) -> Judged:
    """Return what pictures ``(N, H, W)`` show."""
    reading = world.read(pixels)
    truth = avatars_of(world).album.of(reading.labels)
    return Judged(reading.labels, reading.sure, ((pixels - truth) ** 2).mean(axis=(1, 2)), truth)


def same(first: Labels, second: Labels) -> Flags:
    """Return which features ``(N, 5)`` are the same, or not shown by one of the two."""
    return np.asarray((first == second) | (first == NOT_SHOWN) | (second == NOT_SHOWN))


def avatars_of(world: World) -> Avatars:
    """Return what is known of the world of avatars.

    Raises
    ------
    ConfigError
        If it is another world.
    """
    if world.avatars is None:
        raise ConfigError("this exam is about looks; leave it out of tasks in other worlds than avatars")
    return world.avatars


def refuse(candidate: Candidate, exam: str, lacks: str) -> ConfigError:
    """Return the error of a model that an exam asks too much of."""
    return ConfigError(f"the family {candidate.detector.family!r} {lacks}; leave out the exam {exam}")
