from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from anomaly.evaluation.localisation import (
    LesionFound,
    dice_at,
    dice_curve,
    dice_thresholds,
    lesions_found,
    localise,
    oracle_dice,
    oracle_threshold,
    recall_by_size,
    voxel_average_precision,
)

SHAPE = (12, 14, 10)


def scan(seed: int, decimals: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[2:-2, 2:-2, 2:-2] = True
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[4:7, 5:8, 4:6] = True
    evidence = np.where(brain, np.abs(rng.normal(size=SHAPE)) + lesion, 0)
    return evidence.round(decimals).astype(np.float32), lesion, brain


@pytest.mark.parametrize("decimals", [0, 1, 6], ids=["heavy ties", "some ties", "no ties"])
def test_voxel_average_precision_agrees_with_scikit_learn_inside_the_brain(decimals: int) -> None:
    evidence, lesion, brain = scan(0, decimals)
    expected = metrics.average_precision_score(lesion[brain], evidence[brain])
    assert voxel_average_precision(evidence, lesion, brain) == pytest.approx(expected)


def test_evidence_outside_the_brain_does_not_count() -> None:
    evidence, lesion, brain = scan(0)
    loud = np.where(brain, evidence, 99).astype(np.float32)
    assert voxel_average_precision(loud, lesion, brain) == voxel_average_precision(evidence, lesion, brain)
    assert oracle_dice(loud, lesion, brain) == oracle_dice(evidence, lesion, brain)


def test_lesion_outside_the_brain_counts_as_missed() -> None:
    _, lesion, brain = scan(0)
    half = brain.copy()
    half[:5] = False
    perfect = lesion.astype(np.float32)
    found = (lesion & half).sum() / lesion.sum()
    assert voxel_average_precision(perfect, lesion, half) == pytest.approx(found)
    assert oracle_dice(perfect, lesion, half) == pytest.approx(2 * found / (1 + found))
    assert voxel_average_precision(perfect, lesion, ~lesion) == 0
    assert oracle_dice(perfect, lesion, ~lesion) == 0


def test_an_empty_lesion_has_no_average_precision() -> None:
    evidence, lesion, brain = scan(0)
    assert np.isnan(voxel_average_precision(evidence, lesion & False, brain))


def test_the_oracle_is_the_best_over_every_threshold() -> None:
    evidence, lesion, brain = scan(1, decimals=2)
    thresholds = [-1.0, *np.unique(evidence)]
    best = max(dice_at(evidence, lesion, brain, t) for t in thresholds)
    assert oracle_dice(evidence, lesion, brain) == pytest.approx(best)


def test_the_dice_curve_is_the_dice_at_each_threshold() -> None:
    evidence, lesion, brain = scan(2)
    curve = dice_curve(evidence, lesion, brain)
    for index in (0, 600, 700, 1199):
        assert curve[index] == pytest.approx(dice_at(evidence, lesion, brain, dice_thresholds()[index]))


def test_one_threshold_for_all_is_never_better_than_one_for_each() -> None:
    found = [localise(*scan(seed), None, 0.008) for seed in range(4)]
    _, place = oracle_threshold([scan.dice_curve for scan in found])
    shared = np.mean([scan.dice_curve[place] for scan in found])
    assert shared <= np.mean([scan.oracle_dice for scan in found]) + 1e-12


def test_lesions_that_touch_at_a_corner_are_one() -> None:
    lesion = np.zeros((6, 6, 6), dtype=bool)
    lesion[0, 0, 0] = lesion[1, 1, 1] = lesion[4, 4, 4] = True
    flagged = np.zeros_like(lesion)
    flagged[1, 1, 1] = True
    assert lesions_found(flagged, lesion, 0.5) == (LesionFound(1.0, 0.5), LesionFound(0.5, 0.0))


def test_recall_counts_lesions_by_size() -> None:
    lesions = [LesionFound(0.5, 0.0), LesionFound(1.0, 1.0), LesionFound(3.0, 0.05), LesionFound(50.0, 0.1)]
    assert recall_by_size(lesions) == {
        "0 to 1 ml": (1, 2),
        "1 to 5 ml": (0, 1),
        "5 to 20 ml": (0, 0),
        "over 20 ml": (1, 1),
    }


def test_a_scan_is_summed_up() -> None:
    evidence, lesion, brain = scan(3)
    found = localise(evidence, lesion, brain, flagged=lesion, voxel_ml=0.5)
    assert (found.dice, found.lesion_ml, found.flagged_ml) == (1.0, 9.0, 9.0)
    assert found.lesions == (LesionFound(9.0, 1.0),)


def test_without_a_calibration_there_is_no_dice_but_an_oracle() -> None:
    found = localise(*scan(3), flagged=None, voxel_ml=0.5)
    assert found.dice is None
    assert found.flagged_ml is None
    assert 0 < found.oracle_dice <= 1
