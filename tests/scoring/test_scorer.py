import numpy as np
import pytest
from pydantic import ValidationError

from anomaly.core.covariates import covariates
from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.scoring.reference import mean_healthy_image, similarity
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from tests.scoring.factory import SHAPE, Constant, Scans, ball

SETTINGS = ScoringSettings(smoothing_mm=0, sd_smoothing_mm=8, sd_floor=0.1)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    scans = Scans()
    return Scorer(Constant(), SETTINGS).learn_reference(scans, scans)


def planted(factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    voxels, mask = Scans(13)[12]
    lesion = np.zeros_like(mask)
    lesion[6:10, 7:11, 5:8] = True
    return np.where(lesion, voxels * factor, voxels).astype(np.float32), mask, lesion


def test_a_pattern_of_all_healthy_scans_is_no_evidence(scorer: Scorer) -> None:
    voxels, mask = Scans(13)[12]
    signed = scorer.score(voxels, mask).signed[mask]

    assert abs(signed.mean()) < 0.2
    assert 0.7 < signed.std() < 1.4


@pytest.mark.parametrize(("factor", "sign"), [(0.3, -1), (1.7, 1)], ids=["dark", "bright"])
def test_a_lesion_stands_out_and_keeps_its_sign(scorer: Scorer, factor: float, sign: int) -> None:
    voxels, mask, lesion = planted(factor)
    scored = scorer.score(voxels, mask)

    assert np.sign(np.median(scored.signed[lesion])) == sign
    assert np.median(scored.evidence[lesion]) > 3 * np.median(scored.evidence[mask & ~lesion])


def test_a_lesion_raises_every_score(scorer: Scorer) -> None:
    healthy = scorer.score(*Scans(13)[12]).scores
    abnormal = scorer.score(*planted(0.3)[:2]).scores

    assert {name for name in abnormal if abnormal[name] > healthy[name]} == set(abnormal)
    assert {"reconstruction", "reconstruction_p99", "reconstruction_mean", "kl", "combined"} == set(abnormal)


def test_the_scores_of_held_out_scans_are_part_of_the_reference(scorer: Scorer) -> None:
    assert scorer.reference is not None
    kept = scorer.reference.held_out_scores
    found = [scorer.score(*scan).scores for scan in (Scans()[index] for index in range(12))]

    assert kept == {name: [scores[name] for scores in found] for name in found[0]}
    assert np.mean(kept["combined"]) == pytest.approx(0)
    assert Scorer(Constant(), SETTINGS).learn_reference(Scans()).reference.held_out_scores == {}


def test_a_small_weight_lowers_the_evidence_of_bright_voxels() -> None:
    scans = Scans()
    dark_only = Scorer(Constant(), SETTINGS.model_copy(update={"bright_weight": 0.01}))
    dark_only = dark_only.learn_reference(scans, scans)
    voxels, mask, lesion = planted(1.7)

    assert np.median(dark_only.score(voxels, mask).evidence[lesion]) < 0.1


def test_a_scan_unlike_any_healthy_scan_is_refused_with_what_was_found(scorer: Scorer) -> None:
    mask = ball()
    inverted = np.where(mask, 3 - Scans()[0][0], 0).astype(np.float32)

    with pytest.raises(ScanRefusedError, match=r"correlation of -\d\.\d\d.*expected at least 0\.40") as refusal:
        scorer.score(inverted, mask)
    assert refusal.value.code == "unlike_training_data"


def test_the_same_scan_gives_bit_identical_evidence_twice(scorer: Scorer) -> None:
    first, second = (scorer.score(*Scans()[3]) for _ in range(2))

    np.testing.assert_array_equal(first.evidence, second.evidence)
    assert first.scores == second.scores


def test_a_noisier_scan_than_the_training_scans_has_an_acquisition_shift() -> None:
    scans = Scans(24)
    scorer = Scorer(Constant(), SETTINGS).learn_reference(scans, scans)
    voxels, mask = Scans(26)[25]
    noise = np.random.default_rng(7).normal(0, 0.4, voxels.shape)
    noisy = np.where(mask, voxels + noise, 0).astype(np.float32)

    alike, unlike = scorer.score(voxels, mask).acquisition_shift, scorer.score(noisy, mask).acquisition_shift
    assert alike is not None
    assert unlike is not None
    assert alike.p_value > 0.001 > 1e-4 > unlike.p_value
    assert Scorer(Constant(), SETTINGS).score(voxels, mask).acquisition_shift is None


def test_each_map_can_have_its_own_sd_floor() -> None:
    scans = Scans()
    own = Scorer(Constant(), SETTINGS.model_copy(update={"sd_floor": {"residual": 0.1}}))
    high = Scorer(Constant(), SETTINGS.model_copy(update={"sd_floor": {"residual": 3.0}}))
    one, same, floored = (s.learn_reference(scans, scans) for s in (Scorer(Constant(), SETTINGS), own, high))
    assert one.reference is not None
    assert same.reference is not None
    assert floored.reference is not None
    np.testing.assert_array_equal(one.reference.sd["residual"], same.reference.sd["residual"])
    assert (floored.reference.sd["residual"] > 2.5 * np.median(one.reference.sd["residual"])).all()


def test_floors_must_name_the_maps() -> None:
    with pytest.raises(ValidationError, match=r"sd_floor names pca; expected one floor for each of maps: residual"):
        ScoringSettings(sd_floor={"pca": 0.1})


def test_the_similarity_of_a_scan_is_computed_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def counted(voxels: np.ndarray, mask: np.ndarray, mean_image: np.ndarray, grid: Geometry) -> float:
        computed.append(similarity(voxels, mask, mean_image, grid))
        return computed[-1]

    monkeypatch.setattr("anomaly.scoring.scorer.similarity", counted)
    assert computed == [scorer.score(*Scans()[3]).similarity]


STRUCTURE = ScoringSettings(
    smoothing_mm=0, sd_smoothing_mm=8, sd_floor=0.1, structure_maps={"structure": 0.5, "texture": 2.0}
)


def test_structure_adds_to_the_evidence_and_has_a_score_of_its_own(scorer: Scorer) -> None:
    scans = Scans()
    with_structure = Scorer(Constant(), STRUCTURE).learn_reference(scans, scans)
    voxels, mask, _ = planted(0.3)
    plain, scored = scorer.score(voxels, mask), with_structure.score(voxels, mask)

    assert plain.structure is None
    assert scored.structure is not None
    np.testing.assert_allclose(scored.evidence, plain.evidence + scored.structure, rtol=1e-5)
    top = np.sort(scored.structure[scored.mask])[::-1][: max(1, round(0.01 * scored.mask.sum()))]
    assert scored.scores["structure"] == pytest.approx(top.mean(), rel=1e-5)
    assert "structure" not in plain.scores
    assert with_structure.reference is not None
    assert with_structure.reference.held_out_scores["structure"]


def test_the_reference_is_the_same_from_scans_and_from_evidence_computed_before() -> None:
    scans = Scans()
    scorer = Scorer(Constant(), STRUCTURE)
    mean_image = mean_healthy_image(scans)
    raw = [(scorer._raw(v, m, scans.covariates(0), mean_image), v, m) for v, m in (scans[i] for i in range(12))]
    one, same = scorer.learn_reference(scans).reference, scorer.learn_from(raw).reference
    assert one is not None
    assert same is not None
    for name, values in one.arrays().items():
        np.testing.assert_array_equal(values, same.arrays()[name])


def test_a_scan_with_more_evidence_everywhere_is_scaled_to_the_usual_background() -> None:
    scans = Scans()
    scaled = SETTINGS.model_copy(update={"background_percentile": 90.0, "min_block_correlation": -1.0})
    scorer = Scorer(Constant(), scaled).learn_reference(scans, scans)
    assert scorer.reference is not None
    usual = scorer.reference.background
    assert usual is not None
    voxels, mask, lesion = planted(3.0)
    noisy = np.where(mask, voxels + np.random.default_rng(0).normal(0, 0.3, mask.shape), 0).astype(np.float32)

    healthy, foreign = scorer.score(*Scans()[3]), scorer.score(noisy, mask)
    assert foreign.scores["background"] > 1.5 * usual
    assert np.percentile(foreign.evidence[mask], 90) == pytest.approx(usual, rel=1e-3)
    assert np.median(np.abs(foreign.signed[lesion])) > usual
    assert healthy.scores["background"] == pytest.approx(np.percentile(healthy.evidence[healthy.mask], 90), rel=0.3)


NO_LIMIT = SETTINGS.model_copy(update={"min_block_correlation": -1.0})


class AgedScans(Scans):
    """Healthy scans whose intensity falls, and whose noise grows, with the age of the subject."""

    def __init__(self, n: int, first: int = 0) -> None:
        super().__init__(n)
        self.first = first

    def covariates(self, index: int) -> FloatArray:
        return covariates(20 + 60 * (index + 0.5) / self.n, "FM"[index % 2])

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        if index >= self.n:
            raise IndexError(index)
        mask, decades = ball(), (self.covariates(index)[0] - 50) / 10
        noise = np.random.default_rng(self.first + index).normal(0, 0.1 * np.exp(0.2 * decades), SHAPE)
        return np.where(mask, 1 - 0.1 * decades + noise, 0).astype(np.float32), mask


@pytest.fixture(scope="module")
def by_age() -> Scorer:
    settings = NO_LIMIT.model_copy(update={"standardise": "normative"})
    return Scorer(Constant(), settings).learn_reference(AgedScans(40), AgedScans(24, first=100))


def test_against_subjects_of_the_same_age_old_healthy_subjects_score_like_young_ones(by_age: Scorer) -> None:
    all_ages = Scorer(Constant(), NO_LIMIT).learn_reference(AgedScans(40))
    new = AgedScans(30, first=200)
    ages = [float(new.covariates(n)[0]) for n in range(30)]

    def correlation(scorer: Scorer) -> float:
        scores = [scorer.score(*new[n], new.covariates(n)).scores["reconstruction"] for n in range(30)]
        return float(np.corrcoef(ages, np.log(scores))[0, 1])

    assert abs(correlation(by_age)) < 0.4
    assert correlation(all_ages) > 0.6


def test_held_out_scores_are_those_that_the_scans_get(by_age: Scorer) -> None:
    assert by_age.reference is not None
    held_out = AgedScans(24, first=100)
    found = [by_age.score(*held_out[n], held_out.covariates(n)).scores for n in range(24)]
    for name, kept in by_age.reference.held_out_scores.items():
        assert kept == pytest.approx([scores[name] for scores in found], rel=1e-5, abs=1e-6)


def test_a_scan_says_with_whom_it_was_compared(by_age: Scorer, scorer: Scorer) -> None:
    voxels, mask = Scans(13)[12]
    known = by_age.score(voxels, mask, covariates(55.5, "M")).compared_with
    assert known is not None
    assert (known.age, known.sex) == (55, "male")
    assert by_age.uses_covariates
    assert scorer.score(voxels, mask, covariates(55.5, "M")).compared_with is None
    assert not scorer.uses_covariates
