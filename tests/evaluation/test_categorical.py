from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare

from anomaly.evaluation.categorical import (
    column_counts,
    column_fit,
    differing_columns,
    distinct_share,
    expected_differing_columns,
    expected_distinct_share,
    margin_fit,
)

PROBABILITIES = (np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.1]))
SIGNIFICANCE_LEVEL = 0.05


def rows(
    n: int, rng: np.random.Generator, probabilities: tuple[npt.NDArray[np.float64], ...] = PROBABILITIES
) -> npt.NDArray[np.int64]:
    return np.stack([rng.choice(len(theta), size=n, p=theta) for theta in probabilities], axis=1)


def test_the_statistic_and_its_p_value_are_those_of_a_chi_square_test_where_that_one_is_valid(
    rng: np.random.Generator,
) -> None:
    counts = np.array([530, 270, 200])
    found = column_fit(counts, PROBABILITIES[0], rng)
    textbook = chisquare(counts, 1000 * PROBABILITIES[0])

    assert found.statistic == pytest.approx(30**2 / 500 + 30**2 / 300 + 0)
    assert found.statistic == pytest.approx(textbook.statistic)
    assert found.p_value == pytest.approx(textbook.pvalue, abs=0.015)


def test_the_p_value_of_few_rows_is_exact(rng: np.random.Generator) -> None:
    # Of two rows, both have the rare code with probability 0.01, and exactly one of them with 0.18.
    assert column_fit([0, 2], PROBABILITIES[1], rng).p_value == pytest.approx(0.01, abs=0.004)
    assert column_fit([1, 1], PROBABILITIES[1], rng).p_value == pytest.approx(0.19, abs=0.015)
    assert column_fit([2, 0], PROBABILITIES[1], rng).p_value == 1


def test_rows_from_the_distribution_are_rejected_at_most_at_the_significance_level(
    rng: np.random.Generator,
) -> None:
    rejected = [
        margin_fit(rows(60, rng), PROBABILITIES, seed, 399).p_value <= SIGNIFICANCE_LEVEL for seed in range(300)
    ]
    assert np.mean(rejected) < SIGNIFICANCE_LEVEL + 3 * np.sqrt(SIGNIFICANCE_LEVEL * (1 - SIGNIFICANCE_LEVEL) / 300)


def test_rows_from_another_distribution_are_rejected(rng: np.random.Generator) -> None:
    tilted = (np.array([0.4, 0.4, 0.2]), PROBABILITIES[1])
    rejected = [
        margin_fit(rows(500, rng, tilted), PROBABILITIES, seed, 399).p_value <= SIGNIFICANCE_LEVEL
        for seed in range(50)
    ]
    assert np.mean(rejected) > 0.95


def test_codes_of_probability_zero_are_counted_separately(rng: np.random.Generator) -> None:
    with_impossible = column_fit([50, 30, 20, 7], [0.5, 0.3, 0.2, 0.0], rng)
    assert (with_impossible.n, with_impossible.impossible) == (100, 7)
    assert with_impossible.statistic == 0
    assert with_impossible.p_value == 1


def test_unknown_codes_are_left_out_of_their_column_only() -> None:
    codes = np.array([[0, 0], [-1, 1], [2, -1], [0, 1]])
    assert [list(counts) for counts in column_counts(codes, [3, 2])] == [[2, 0, 1], [1, 2]]
    fit = margin_fit(codes, PROBABILITIES, seed=0)
    assert [column.n for column in fit.columns] == [3, 3]


def test_a_column_without_known_codes_has_a_p_value_of_one() -> None:
    assert margin_fit(np.full((5, 2), -1), PROBABILITIES, seed=0).p_value == 1


@pytest.mark.parametrize("codes", [[[3, 0]], [[0, -2]], [[0]], [0, 1]])
def test_codes_that_do_not_fit_the_columns_are_refused(codes: list[object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        column_counts(codes, [3, 2])


def test_the_mean_number_of_differing_columns_is_that_over_all_pairs(rng: np.random.Generator) -> None:
    codes = rows(40, rng)
    pairs = [(codes[i] != codes[j]).sum() for i in range(40) for j in range(i)]
    assert differing_columns(column_counts(codes, [3, 2])) == pytest.approx(np.mean(pairs))


def test_the_expected_number_of_differing_columns_is_computed_by_hand() -> None:
    assert expected_differing_columns(PROBABILITIES) == pytest.approx((1 - 0.25 - 0.09 - 0.04) + (1 - 0.81 - 0.01))


def test_one_row_has_no_pair_that_differs() -> None:
    assert np.isnan(differing_columns(column_counts([[0, 1]], [3, 2])))


def test_the_expected_share_of_different_rows_is_computed_by_hand() -> None:
    # Of two fair coins: one side with probability 1/2, both with 1/2; on average 1.5 sides of 2 coins.
    assert expected_distinct_share([0.5, 0.5], 2) == pytest.approx(0.75)
    assert expected_distinct_share([1.0, 0.0], 4) == pytest.approx(0.25)
    assert distinct_share(["a", "b", "a", "a"]) == 0.5


def test_draws_have_as_many_different_rows_as_expected(rng: np.random.Generator) -> None:
    cells = np.outer(*PROBABILITIES).ravel()
    shares = [distinct_share([tuple(row) for row in rows(8, rng).tolist()]) for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(expected_distinct_share(cells, 8), abs=0.01)
