from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from anomaly.evaluation.detection import (
    auroc,
    average_precision,
    average_precision_of,
    false_positive_rates,
    precision_recall_curve,
    roc_curve,
    sensitivity_at_specificity,
)


def scans(seed: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(60) < 0.3
    return labels, (rng.normal(size=60) + labels).round(decimals)


@pytest.mark.parametrize("decimals", [0, 1, 12], ids=["heavy ties", "some ties", "no ties"])
@pytest.mark.parametrize("seed", range(5))
def test_areas_agree_with_scikit_learn(seed: int, decimals: int) -> None:
    labels, scores = scans(seed, decimals)
    assert auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert average_precision(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores))


def test_areas_by_hand() -> None:
    labels, scores = [0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0]
    assert auroc(labels, scores) == 3 / 4
    assert average_precision(labels, scores) == (1 / 1 + 2 / 3) / 2


def test_an_area_without_both_classes_is_undefined() -> None:
    assert np.isnan(auroc([1, 1], [1.0, 2.0]))
    assert np.isnan(average_precision([0, 0], [1.0, 2.0]))


def test_precision_without_negatives_is_one() -> None:
    assert average_precision_of(np.array([1.0, 2.0]), np.array([])) == 1.0


@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_sensitivity_is_the_best_point_of_scikit_learns_curve(specificity: float, decimals: int) -> None:
    labels, scores = scans(7, decimals)
    false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    expected = true[false <= 1 - specificity + 1e-9].max()
    assert sensitivity_at_specificity(labels, scores, specificity) == pytest.approx(expected)


def test_sensitivity_by_hand() -> None:
    labels = [0] * 10 + [1] * 4
    scores = [*range(10), 8.5, 9.0, 9.5, 3.0]
    assert sensitivity_at_specificity(labels, scores, 0.9) == 3 / 4  # one of ten may be above: threshold 8
    assert sensitivity_at_specificity(labels, scores, 0.95) == 1 / 4  # none may: threshold 9
    assert sensitivity_at_specificity(labels, scores, 0.0) == 1.0


def test_curves_agree_with_scikit_learn() -> None:
    labels, scores = scans(3, 1)
    false, true = roc_curve(labels, scores)
    expected_false, expected_true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, expected_false)
    np.testing.assert_allclose(true, expected_true)
    recall, precision = precision_recall_curve(labels, scores)
    expected_precision, expected_recall, _ = metrics.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(recall[1:], expected_recall[::-1][1:])
    np.testing.assert_allclose(precision[1:], expected_precision[::-1][1:])


def test_observed_rates_count_p_values_at_most_alpha() -> None:
    np.testing.assert_allclose(false_positive_rates([0.05, 0.2, 0.5, 1.0], [0.01, 0.05, 0.5]), [0, 1 / 4, 3 / 4])


def test_labels_and_scores_must_match() -> None:
    with pytest.raises(ValueError, match="one shape"):
        auroc([0, 1], [1.0])
