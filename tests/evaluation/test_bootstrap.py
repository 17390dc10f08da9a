from __future__ import annotations

import numpy as np
import pytest

from anomaly.evaluation.bootstrap import bootstrap, bootstrap_mean, draws, paired_difference, subject_means
from anomaly.evaluation.detection import auroc


def test_scans_of_a_subject_are_drawn_together() -> None:
    subjects = ["a", "a", "b", "c", "c", "c"]
    for rows in draws(subjects, n_draws=50):
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[1]
        assert counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[2] + counts[3] == 3


def test_draws_keep_the_number_of_subjects_of_each_label() -> None:
    subjects, labels = list("abcdef"), np.array([0, 0, 0, 0, 1, 1])
    assert {int(labels[rows].sum()) for rows in draws(subjects, labels, n_draws=50)} == {2}


def test_a_subject_with_both_labels_keeps_both_scans_in_a_draw() -> None:
    subjects, labels = ["a", "a", "b", "b", "c"], np.array([0, 1, 0, 1, 0])
    for rows in draws(subjects, labels, n_draws=20):
        assert labels[rows].sum() == 2
        assert len(rows) == 5


def test_one_seed_gives_one_interval() -> None:
    values, subjects = np.arange(20.0), list(range(20))
    assert bootstrap_mean(values, subjects, seed=3) == bootstrap_mean(values, subjects, seed=3)
    assert bootstrap_mean(values, subjects, seed=3) != bootstrap_mean(values, subjects, seed=4)


def test_the_interval_of_a_mean_is_about_two_standard_errors(rng: np.random.Generator) -> None:
    values = rng.normal(size=200)
    found = bootstrap_mean(values, list(range(200)))
    error = values.std() / np.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (found.n_subjects, found.n_draws) == (200, 2000)


def test_bootstrap_and_bootstrap_mean_agree(rng: np.random.Generator) -> None:
    values, subjects = rng.normal(size=50), list(range(50))
    general = bootstrap(lambda rows: float(values[rows].mean()), subjects)
    quick = bootstrap_mean(values, subjects)
    assert general.value == pytest.approx(quick.value)
    np.testing.assert_allclose([general.low, general.high], [quick.low, quick.high], atol=0.03)


def test_an_interval_has_about_its_nominal_coverage() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=60)
        found = bootstrap_mean(values, list(range(60)), n_draws=400, seed=seed)
        covered += found.low <= 0 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_each_subject_counts_once_in_a_mean() -> None:
    np.testing.assert_allclose(subject_means([1, 3, 10], ["a", "a", "b"]), [2, 10])
    assert bootstrap_mean([1, 3, 10], ["a", "a", "b"]).value == 6


def test_values_that_are_missing_are_left_out() -> None:
    found = bootstrap_mean([1.0, np.nan, 3.0, np.nan], ["a", "a", "b", "c"])
    assert (found.value, found.n_subjects) == (2.0, 2)


def test_pairing_removes_the_variation_that_both_share(rng: np.random.Generator) -> None:
    difficulty = rng.normal(0, 5, size=40)
    first, second = difficulty + 0.3 + rng.normal(0, 0.1, 40), difficulty + rng.normal(0, 0.1, 40)
    found = paired_difference(first, second, list(range(40)))
    assert found.excludes_zero
    assert found.low < 0.3 < found.high


def test_the_same_values_do_not_differ() -> None:
    found = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], ["a", "b", "c"])
    assert found.value == 0
    assert not found.excludes_zero


def test_one_subject_has_a_value_and_no_interval() -> None:
    found = bootstrap_mean([0.5], ["a"])
    assert found.value == 0.5
    assert np.isnan(found.low)
    assert not found.excludes_zero
    assert np.isnan(bootstrap(lambda rows: 1.0, ["a", "a"]).high)
    assert np.isnan(bootstrap_mean([], []).value)


def test_draws_that_do_not_define_the_statistic_are_not_counted() -> None:
    labels, scores = np.array([0, 0, 0, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    found = bootstrap(lambda rows: auroc(labels[rows], scores[rows]), list("abcd"), n_draws=200)
    assert 0 < found.n_draws < 200
    assert found.value == 1.0
    never = bootstrap(lambda rows: float("nan"), list("abcd"), n_draws=10)
    assert (never.n_draws, np.isnan(never.low)) == (0, True)
