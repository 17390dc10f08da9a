from __future__ import annotations

import numpy as np
import pytest

from anomaly.calibration.conformal import (
    flag_rank,
    minimum_alpha,
    p_values,
    percentiles,
    required_healthy,
)
from anomaly.core.errors import AlphaTooSmallError


def test_p_values_match_the_formula_by_hand() -> None:
    reference = [1.0, 2.0, 3.0, 4.0]
    np.testing.assert_allclose(p_values([0.0, 2.5, 4.0, 9.0], reference), [5 / 5, 3 / 5, 2 / 5, 1 / 5])


def test_a_tie_counts_as_at_least_as_anomalous() -> None:
    assert p_values(2.0, [2.0, 2.0, 2.0]) == 1.0


def test_p_values_keep_the_shape_of_the_scores() -> None:
    assert p_values(np.zeros((2, 3)), [1.0]).shape == (2, 3)


def test_the_order_of_the_reference_does_not_matter(rng: np.random.Generator) -> None:
    reference, scores = rng.normal(size=30), rng.normal(size=10)
    np.testing.assert_array_equal(p_values(scores, reference), p_values(scores, rng.permutation(reference)))


def test_a_higher_score_never_has_a_higher_p_value(rng: np.random.Generator) -> None:
    scores = np.sort(rng.normal(size=200).round(1))
    assert (np.diff(p_values(scores, rng.normal(size=37).round(1))) <= 0).all()


@pytest.mark.parametrize("decimals", [0, 1, 12], ids=["heavy ties", "some ties", "no ties"])
@pytest.mark.parametrize("n", [9, 24, 99])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.29, 0.5])
def test_exchangeable_scans_are_flagged_at_most_at_rate_alpha(n: int, alpha: float, decimals: int) -> None:
    draws = 4000
    values = np.random.default_rng(n).gamma(2.0, size=(draws, n + 1)).round(decimals)
    at_least = (values[:, :n] >= values[:, n:]).sum(axis=1)
    rate = np.mean((1 + at_least) / (n + 1) <= alpha)
    assert rate <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / draws)


def test_percentile_is_the_share_of_healthy_scans_below() -> None:
    np.testing.assert_allclose(percentiles([0, 2, 2.5, 9], [1, 2, 3, 4]), [0, 25, 50, 100])


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.03, 33), (0.9, 1)])
def test_required_healthy_is_the_smallest_sufficient_number(alpha: float, needed: int) -> None:
    assert required_healthy(alpha) == needed
    assert minimum_alpha(needed) <= alpha
    assert needed == 1 or minimum_alpha(needed - 1) > alpha


def test_too_small_an_alpha_is_refused_with_the_number_of_scans_needed() -> None:
    with pytest.raises(AlphaTooSmallError, match=r"at least 99 healthy scans \(75 more\)"):
        flag_rank(24, 0.01)


def test_the_rank_is_exact_despite_rounding() -> None:
    assert 0.29 * 100 < 29  # the float product falls short of the true product
    assert flag_rank(99, 0.29) == 29


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0])
def test_an_alpha_that_is_no_rate_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        flag_rank(10, alpha)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        p_values([np.nan], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        p_values([1.0], [1.0, np.inf])
    with pytest.raises(ValueError, match="n ≥ 1"):
        p_values([1.0], [])
