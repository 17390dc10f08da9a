from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from anomaly.calibration.conformal import p_values
from anomaly.calibration.operating_point import (
    beta_binomial_band,
    binomial_band,
    check_fpr,
    clopper_pearson,
    evidence_edges,
    exceedance,
    fpr_interval,
    operating_point,
    voxel_threshold,
)
from anomaly.core.errors import AlphaTooSmallError


def test_the_threshold_is_the_lth_largest_healthy_score() -> None:
    point = operating_point(np.arange(1.0, 25.0), alpha=0.10)  # n = 24, l = floor(2.5) = 2
    assert (point.rank, point.threshold, point.expected_rate) == (2, 23.0, 2 / 25)


@pytest.mark.parametrize("alpha", [0.05, 0.07, 0.1, 0.29, 0.5, 0.95])
@pytest.mark.parametrize("n", [24, 39, 99])
def test_above_the_threshold_means_p_at_most_alpha(n: int, alpha: float, rng: np.random.Generator) -> None:
    reference = rng.normal(size=n).round(1)
    scores = np.concatenate([reference, rng.normal(size=300).round(1)])
    point = operating_point(reference, alpha)
    np.testing.assert_array_equal(scores > point.threshold, p_values(scores, reference) <= alpha)


def test_too_few_healthy_scans_are_refused() -> None:
    with pytest.raises(AlphaTooSmallError, match="at least 19 healthy scans"):
        operating_point(np.arange(10.0), 0.05)


def test_clopper_pearson_agrees_with_scipy_and_with_a_known_value() -> None:
    for count, n in [(0, 29), (3, 29), (29, 29)]:
        expected = stats.binomtest(count, n).proportion_ci(0.95, "exact")
        interval = clopper_pearson(count, n)
        np.testing.assert_allclose([interval.low, interval.high], [expected.low, expected.high], atol=1e-12)
    assert clopper_pearson(0, 100).high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_clopper_pearson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        clopper_pearson(5, 4)


def test_the_rate_of_one_calibration_is_beta_distributed() -> None:
    n, alpha, draws = 24, 0.1, 4000
    uniform = np.random.default_rng(1).random((draws, n))
    rates = 1 - np.sort(uniform, axis=1)[:, n - 2]  # uniform scores: rate above the 2nd largest
    assert rates.mean() == pytest.approx(2 / 25, abs=0.004)
    interval = fpr_interval(n, alpha)
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(rates, [0.025, 0.975]), atol=0.01)


def test_the_beta_binomial_band_has_its_nominal_coverage() -> None:
    n, m, alpha, draws = 24, 29, 0.1, 6000
    generator = np.random.default_rng(2)
    thresholds = np.sort(generator.random((draws, n)), axis=1)[:, n - 2]
    counts = (generator.random((draws, m)) > thresholds[:, None]).sum(axis=1)
    band = beta_binomial_band(m, n, alpha)
    assert np.mean([count in band for count in counts]) >= 0.99 - 0.004
    assert np.mean(counts > binomial_band(m, alpha).high) > 0.005  # the plain band is too narrow


def test_the_plain_band_is_scipys_binomial() -> None:
    band = binomial_band(29, 0.05)
    assert (band.low, band.high) == (0, 5)
    assert stats.binom.sf(5, 29, 0.05) <= 0.005 < stats.binom.sf(4, 29, 0.05)


def test_many_flagged_healthy_scans_exceed_the_target() -> None:
    check = check_fpr(n_flagged=20, n_test=29, n_healthy=24, alpha=0.05)
    assert check.position == "above"
    assert not check.within_target
    assert not check.inside_plain_band


def test_no_flagged_healthy_scan_is_within_the_target() -> None:
    check = check_fpr(0, 29, 24, 0.05)
    assert check.position == "inside"
    assert check.within_target
    assert check.rate == 0
    assert 0.05 in check.interval


def test_too_few_and_too_many_flags_are_distinguished() -> None:
    check = check_fpr(n_flagged=0, n_test=2000, n_healthy=999, alpha=0.5)
    assert (check.position, check.within_target) == ("below", True)


def test_exceedance_counts_voxels_strictly_above_each_edge() -> None:
    np.testing.assert_allclose(exceedance([0, 1, 2, 2, 5], [1, 2, 3, 9]), [3 / 5, 1 / 5, 1 / 5, 0])


def test_the_voxel_threshold_reaches_the_voxel_rate(rng: np.random.Generator) -> None:
    scans = np.abs(rng.normal(size=(5, 20_000)))
    edges = evidence_edges()
    threshold = voxel_threshold([exceedance(scan, edges) for scan in scans], edges, 0.01)
    assert 0.0095 < np.mean(scans > threshold) <= 0.01


def test_scans_count_equally_in_the_voxel_threshold() -> None:
    edges = np.array([1.0, 2.0, 3.0])
    rows = [exceedance(np.full(1000, 0.5), edges), exceedance(np.full(10, 2.5), edges)]
    assert voxel_threshold(rows, edges, 0.5) == 1.0
    assert voxel_threshold(rows, edges, 0.4) == 3.0


def test_edges_that_do_not_reach_the_tail_are_refused() -> None:
    edges = np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="reach the top"):
        voxel_threshold([exceedance([5.0, 6.0], edges)], edges, 0.1)
    with pytest.raises(ValueError, match="brain voxel"):
        exceedance([], edges)
