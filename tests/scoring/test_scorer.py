import numpy as np
import pytest
from pydantic import ValidationError

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Geometry
from anomaly.scoring.reference import similarity
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from tests.scoring.factory import Constant, Scans, ball

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
