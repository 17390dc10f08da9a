from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from anomaly.calibration.operating_point import operating_point
from anomaly.core.covariates import covariates
from anomaly.core.errors import BundleError, ConfigError, ScanRefusedError
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.scoring.ensemble import (
    EnsembleScorer,
    MergeMethod,
    MergeSettings,
    PValueKind,
    log_p_values,
    merge_log_p_values,
)
from anomaly.scoring.normative import NormativeModel
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import EvidenceSettings, ScoringSettings
from tests.scoring.factory import SHAPE, Constant, Scans

EVIDENCE = EvidenceSettings(scan_score="ensemble")
METHODS_AND_KINDS = [(how, kind) for how in ("fisher", "bonferroni", "mean") for kind in ("student", "conformal")]


class OtherScans(Scans):
    """Healthy scans that no member learnt from."""

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        return Scans(100 + self.n)[100 + index]


def trained(**settings: Any) -> Scorer:
    chosen = ScoringSettings(**{"smoothing_mm": 0, "sd_smoothing_mm": 8, "sd_floor": 0.1} | settings)
    return Scorer(Constant(), chosen).learn_reference(Scans(8), OtherScans(12))


@pytest.fixture(scope="module")
def members() -> dict[str, Scorer]:
    return {"sharp": trained(), "smooth": trained(smoothing_mm=6.0)}


def ensemble_of(
    members: Mapping[str, Scorer], reading: EvidenceSettings = EVIDENCE, **merge: Any
) -> EnsembleScorer:
    return EnsembleScorer(dict(members), MergeSettings(**merge), reading)


def scan(factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a new scan, with a lesion unless the factor is 1."""
    voxels, mask = Scans(24)[22]
    abnormal = voxels.copy()
    abnormal[6:10, 7:11, 5:8] *= factor
    return abnormal, mask


@pytest.mark.parametrize("oldest", [70.0, 78.0])
def test_the_member_whose_ages_are_the_farthest_says_with_whom_a_scan_was_compared(
    members: dict[str, Scorer], oldest: float
) -> None:
    reference = members["smooth"].reference
    assert reference is not None
    zeros = {"residual": np.zeros((3, *SHAPE), dtype=np.float16)}
    ones = {"residual": np.ones(SHAPE, dtype=np.float16)}
    of_ages = [NormativeModel(zeros, ones, (20, age), mean_age=50) for age in (74.0, oldest)]
    first, second = (
        replace(members["smooth"], reference=replace(reference, normative=normative)) for normative in of_ages
    )
    ensemble = ensemble_of({"all_ages": members["sharp"], "first": first, "second": second})
    found = ensemble.score(*scan(), covariates(83, "F")).compared_with

    assert ensemble.uses_covariates
    assert found is not None
    assert (found.subject_age, found.age) == (83, min(74, oldest))
    assert not ensemble_of(members).uses_covariates
    assert ensemble_of(members).score(*scan(), covariates(83, "F")).compared_with is None


def test_merging_follows_the_formulas() -> None:
    log_p = np.log([[0.01], [0.2], [0.5]])

    assert merge_log_p_values(log_p, "fisher") == pytest.approx(
        stats.combine_pvalues([0.01, 0.2, 0.5], "fisher").statistic
    )
    assert np.exp(-merge_log_p_values(log_p, "bonferroni")) == pytest.approx(3 * 0.01)
    assert np.exp(-merge_log_p_values(log_p, "mean")) == pytest.approx(2 * 0.71 / 3)


@pytest.mark.parametrize("how", ["fisher", "bonferroni", "mean"])
def test_very_small_p_values_are_still_distinguished(how: MergeMethod) -> None:
    tiny = np.array([[-300.0, -700.0], [-300.0, -700.0]])

    assert merge_log_p_values(tiny, how)[1] > merge_log_p_values(tiny, how)[0]


def test_the_student_p_value_of_a_new_score_is_uniform_for_log_normal_scores() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1500):
        *healthy, new = rng.lognormal(1.0, 0.4, 13)
        found.append(float(np.exp(log_p_values(new, healthy, "student"))))

    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_student_distinguishes_scores_beyond_the_highest_held_out_one() -> None:
    healthy = np.linspace(1, 2, 12)
    beyond = np.array([3.0, 6.0, 1e9])

    assert np.exp(log_p_values(beyond, healthy, "conformal")) == pytest.approx([1 / 13] * 3)
    assert (np.diff(log_p_values(beyond, healthy, "student")) < -3).all()
    assert np.isfinite(log_p_values(1e300, healthy, "student"))


def test_scores_that_may_be_negative_are_used_without_the_logarithm() -> None:
    healthy = np.array([-1.0, 0.0, 1.0])

    assert np.exp(log_p_values(0.0, healthy, "student")) == pytest.approx(0.5)
    assert np.exp(log_p_values(np.sqrt(4 / 3), healthy, "student")) == pytest.approx(stats.t.sf(1, 2))
    assert np.exp(log_p_values(-3.0, [1.0, 2.0, 3.0], "student")) == 1  # of scores that are positive


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kind"), METHODS_AND_KINDS)
def test_the_mean_false_positive_rate_is_within_the_target(how: MergeMethod, kind: PValueKind) -> None:
    """Three dependent members with heavy tails and few held-out scans; the rate must hold all the same."""
    rng, alpha = np.random.default_rng(1), 0.1

    def scores(n: int) -> np.ndarray:
        shared = rng.standard_t(3, n)
        return np.exp(0.5 * shared + [[0.0], [0.1], [1.0]] * rng.standard_t(3, (3, n)))

    flagged = []
    for _ in range(400):
        held_out, calibration, new = scores(8), scores(19), scores(50)
        reference, found = (
            merge_log_p_values(
                np.array([log_p_values(s, h, kind) for s, h in zip(many, held_out, strict=True)]), how
            )
            for many in (calibration, new)
        )
        flagged.append(np.mean(found > operating_point(reference, alpha).threshold))

    error = np.std(flagged) / np.sqrt(len(flagged))
    assert np.mean(flagged) < alpha + 3 * error
    if kind == "student":  # without ties the rate is not only below the target but equal to it
        assert np.mean(flagged) > alpha - 3 * error


@pytest.mark.parametrize(("how", "kind"), METHODS_AND_KINDS)
def test_a_lesion_raises_the_score_of_each_member_and_of_the_ensemble(
    members: dict[str, Scorer], how: MergeMethod, kind: PValueKind
) -> None:
    scorer = ensemble_of(members, how=how, p_values=kind)
    healthy, abnormal = scorer.score(*scan()).scores, scorer.score(*scan(0.3)).scores

    assert list(abnormal) == ["sharp", "smooth", "ensemble"]
    assert all(abnormal[name] > healthy[name] for name in abnormal)


def test_the_score_of_a_member_is_its_score_alone(members: dict[str, Scorer]) -> None:
    merged_scan = ensemble_of(members).score(*scan(0.3))
    alone = {name: member.score(*scan(0.3)) for name, member in members.items()}

    assert {n: merged_scan.scores[n] for n in members} == {n: s.scores["reconstruction"] for n, s in alone.items()}
    np.testing.assert_array_equal(merged_scan.reconstruction, alone["sharp"].reconstruction)
    assert merged_scan.similarity == min(s.similarity for s in alone.values())


def test_a_member_contributes_the_score_it_declares() -> None:
    members = {"kl": trained(scan_score="kl"), "p99": trained(scan_score="reconstruction_p99")}
    alone = members["kl"].score(*scan(0.3)).scores

    found = ensemble_of(members).score(*scan(0.3)).scores
    assert (found["kl"], found["p99"]) == (alone["kl"], alone["reconstruction_p99"])


def test_the_map_is_the_weighted_mean_of_the_members_maps(members: dict[str, Scorer]) -> None:
    sharp, smooth = (member.score(*scan(0.3)).signed for member in members.values())
    equal, weighted = ensemble_of(members), ensemble_of(members, weights={"smooth": 3.0})

    np.testing.assert_allclose(equal.score(*scan(0.3)).signed, (sharp + smooth) / 2, atol=1e-5)
    np.testing.assert_allclose(weighted.score(*scan(0.3)).signed, (sharp + 3 * smooth) / 4, atol=1e-5)


def test_the_evidence_settings_of_the_ensemble_apply_to_the_merged_map(members: dict[str, Scorer]) -> None:
    read = EvidenceSettings(scan_score="ensemble", bright_weight=0.01, erode_mm=4.0)
    plain, found = ensemble_of(members).score(*scan(1.7)), ensemble_of(members, read).score(*scan(1.7))

    assert found.mask.sum() < plain.mask.sum()
    assert not found.evidence[~found.mask].any()
    lesion = np.s_[6:10, 7:11, 5:8]
    assert np.median(found.evidence[lesion]) < 0.02 * np.median(plain.evidence[lesion])


def test_a_scan_that_one_member_refuses_is_refused_with_its_reason(members: dict[str, Scorer]) -> None:
    strict = replace(
        members["smooth"], settings=members["smooth"].settings.model_copy(update={"min_block_correlation": 0.999})
    )

    with pytest.raises(ScanRefusedError, match=r"expected at least 1\.00"):
        ensemble_of(members | {"strict": strict}).infer(*scan(0.3))


def test_the_acquisition_shift_is_the_least_probable_of_the_members(members: dict[str, Scorer]) -> None:
    few = ensemble_of(members).score(*scan()).acquisition_shift
    many = Scorer(Constant(), members["sharp"].settings).learn_reference(Scans(24), OtherScans(12))
    found = ensemble_of(members | {"many": many}).score(*scan()).acquisition_shift

    assert few is None
    assert found is not None
    assert found == many.score(*scan()).acquisition_shift


def test_a_model_without_held_out_scores_cannot_be_a_member(members: dict[str, Scorer]) -> None:
    old = Scorer(Constant(), members["sharp"].settings).learn_reference(Scans(8))

    with pytest.raises(BundleError, match=r"'old' has no held-out values .*train it again"):
        ensemble_of(members | {"old": old})


def test_a_model_without_standardised_maps_cannot_be_a_member(members: dict[str, Scorer]) -> None:
    with pytest.raises(BundleError, match=r"'raw' are in units of its own .*standardise: voxelwise"):
        ensemble_of(members | {"raw": trained(standardise="none")})


def test_two_held_out_scans_are_too_few_for_student_and_enough_for_conformal(members: dict[str, Scorer]) -> None:
    few = Scorer(Constant(), members["sharp"].settings).learn_reference(Scans(8), OtherScans(2))

    with pytest.raises(BundleError, match=r"'few' has 2 held-out scores.*expects at least 3.*use conformal"):
        ensemble_of(members | {"few": few})
    assert ensemble_of(members | {"few": few}, p_values="conformal").grid == few.grid


def test_a_weight_must_name_a_member(members: dict[str, Scorer]) -> None:
    with pytest.raises(ConfigError, match="unknown member 'blunt'; valid: sharp, smooth"):
        ensemble_of(members, weights={"blunt": 2.0})
