from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.validation.checks.one_class.detection import N_SHOWN, most_confused
from pipelines.validation.checks.one_class.result import SCORED_PARTS, ClassScores, OneClassResult
from pipelines.validation.labelled_dataset import LabelledImages


def found(digit: int, seed: int, abnormal: npt.NDArray[np.bool_], test: npt.NDArray[np.float64]) -> ClassScores:
    return ClassScores(digit, seed, abnormal, {part: {"score": test, "other": -test} for part in SCORED_PARTS})


def numbered(n: int) -> LabelledImages:
    """Images whose every pixel is their own number."""
    pixels = np.arange(n, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), dtype=np.float32)
    return LabelledImages(pixels, np.zeros((n, 1), dtype=np.int64))


def test_most_confused_images_are_high_normal_and_low_abnormal_scores_of_the_first_seed() -> None:
    rng = np.random.default_rng(0)
    scores, abnormal = rng.permutation(40.0 * np.arange(40)), np.arange(40) % 2 == 1
    classes = (found(3, 0, abnormal, scores), found(3, 1, abnormal, -scores), found(7, 0, ~abnormal, scores))
    shown = most_confused(OneClassResult("score", (), classes), numbered(40))[:, 0, 0].astype(int)
    normal, others = np.flatnonzero(~abnormal), np.flatnonzero(abnormal)

    def by_score(which: npt.NDArray[np.intp]) -> list[int]:
        return [int(number) for number in which[np.argsort(scores[which])]]

    assert shown[: 2 * N_SHOWN].tolist() == by_score(normal)[::-1][:N_SHOWN] + by_score(others)[:N_SHOWN]
    assert shown[2 * N_SHOWN :].tolist() == by_score(others)[::-1][:N_SHOWN] + by_score(normal)[:N_SHOWN]


def test_with_few_images_the_last_is_shown_again() -> None:
    few = OneClassResult("score", (), (found(0, 0, np.array([False, True, False]), np.array([1.0, 2.0, 3.0])),))
    shown = most_confused(few, numbered(3))[:, 0, 0].astype(int).tolist()
    assert shown == [2] + [0] * (N_SHOWN - 1) + [1] * N_SHOWN
