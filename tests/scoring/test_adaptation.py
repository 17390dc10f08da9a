"""Adaptation to another scanner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomaly.core.errors import BundleError
from anomaly.core.running_moments import RunningMoments
from anomaly.core.volume import FloatArray, MaskArray
from anomaly.scoring.acquisition_shift import AcquisitionReference
from anomaly.scoring.adaptation import (
    MEAN_PRIOR_SCANS,
    SD_PRIOR_SCANS,
    adapt_scorer,
    adapted_acquisition,
    sd_factor,
    shrunken_mean,
    shrunken_ratio,
)
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from tests.scoring.factory import Constant, Scans

SETTINGS = ScoringSettings(smoothing_mm=0, sd_smoothing_mm=8, sd_floor=0.1)
SHAPE = (2, 2, 2)
N_LOCAL = 8


class OtherScanner(Scans):
    """Scans of the same population whose brightness differs by a smooth pattern and whose noise is stronger."""

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        voxels, mask = super().__getitem__(index)
        ramp = np.linspace(0.2, 0.6, mask.shape[0])[:, None, None]
        return np.where(mask, voxels + ramp, 0).astype(np.float32), mask


@pytest.fixture(scope="module")
def trained() -> Scorer:
    return Scorer(Constant(), SETTINGS).learn_reference(Scans(40), Scans(12))


@pytest.fixture(scope="module")
def adapted(trained: Scorer) -> Scorer:
    return adapt_scorer(trained, OtherScanner(N_LOCAL), [f"sub-{n}" for n in range(N_LOCAL)])


def moments(*arrays: float) -> RunningMoments:
    found = RunningMoments(SHAPE)
    for value in arrays:
        found.add(np.full(SHAPE, value))
    return found


def test_the_mean_is_that_of_the_local_scans_and_of_training_as_so_many_scans() -> None:
    home = np.full(SHAPE, 1.0, dtype=np.float32)
    found = shrunken_mean(home, moments(3.0, 5.0, 4.0))
    assert found[0, 0, 0] == pytest.approx((3 + 5 + 4 + MEAN_PRIOR_SCANS * 1) / (3 + MEAN_PRIOR_SCANS))


def test_a_voxel_that_no_local_scan_covers_keeps_the_mean_of_training() -> None:
    home = np.full(SHAPE, 1.0, dtype=np.float32)
    local = RunningMoments(SHAPE)
    local.add(np.full(SHAPE, 5.0), np.arange(8).reshape(SHAPE) > 3)
    found = shrunken_mean(home, local)
    assert found[0, 0, 0] == 1.0
    assert found[1, 1, 1] > 1.0


def test_the_sd_factor_is_between_one_and_the_ratio_of_the_standard_deviations() -> None:
    home_sd = np.full(SHAPE, 0.5, dtype=np.float32)
    factor = sd_factor(home_sd, moments(1.0, 3.0))  # SD √2
    assert float(factor) ** 2 == pytest.approx((SD_PRIOR_SCANS + 2 / 0.25) / (SD_PRIOR_SCANS + 1))


def test_many_scans_outweigh_the_prior_and_one_scan_leaves_the_sd_alone() -> None:
    assert shrunken_ratio(4.0, 10_000) == pytest.approx(4, rel=0.01)
    assert sd_factor(np.ones(SHAPE, dtype=np.float32), moments(2.0)) == 1


def test_most_of_what_a_scanner_adds_to_the_score_of_a_healthy_scan_is_gone(
    trained: Scorer, adapted: Scorer
) -> None:
    new = OtherScanner(40)[39]
    before, after = (scorer.score(*new).scores["reconstruction"] for scorer in (trained, adapted))
    usual = trained.score(*Scans(40)[39]).scores["reconstruction"]
    assert before > 1.5 * usual
    assert after < usual + (before - usual) / 3


@pytest.mark.parametrize("factor", [0.5, 1.5], ids=["dark", "bright"])
def test_a_lesion_in_a_scan_of_the_other_scanner_stands_out(adapted: Scorer, factor: float) -> None:
    voxels, mask = OtherScanner(40)[38]
    lesion = np.zeros_like(mask)
    lesion[6:10, 7:11, 5:8] = True
    evidence = adapted.score(np.where(lesion, voxels * np.float32(factor), voxels), mask).evidence
    assert np.median(evidence[lesion]) > 3 * np.median(evidence[mask & ~lesion])


def test_the_acquisition_of_the_other_scanner_is_no_longer_foreign(trained: Scorer, adapted: Scorer) -> None:
    new = OtherScanner(40)[37]
    before, after = (scorer.acquisition_shift(*new) for scorer in (trained, adapted))
    assert before is not None
    assert after is not None
    assert before.p_value < 1e-4 < 0.001 < after.p_value


def test_the_acquisition_reference_has_the_local_mean_and_a_wider_spread_than_in_training() -> None:
    home = AcquisitionReference(np.random.default_rng(0).normal(0, 1, (50, 9)).astype(np.float32))
    local = np.random.default_rng(1).normal(5, 1, (8, 9)).astype(np.float32)
    found = adapted_acquisition(home, local).features
    np.testing.assert_allclose(found.mean(axis=0), local.mean(axis=0), atol=1e-5)
    assert found.std() > home.features.std()


def test_held_out_scores_do_not_know_the_own_subject(trained: Scorer) -> None:
    subjects = ["a", "a", "b", "c", "d", "e"]
    together = adapt_scorer(trained, OtherScanner(6), subjects)
    without_a = adapt_scorer(trained, _Some(range(2, 6)), subjects[2:])
    assert together.reference is not None
    kept = together.reference.held_out_scores["reconstruction"]
    expected = [without_a.score(*OtherScanner()[index]).scores["reconstruction"] for index in (0, 1)]
    assert len(kept) == 6
    assert kept[:2] == pytest.approx(expected)


def test_the_detector_and_the_settings_are_those_of_the_trained_model(trained: Scorer, adapted: Scorer) -> None:
    assert adapted.detector is trained.detector
    assert adapted.settings == trained.settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": None}, "no healthy reference"),
        ({"settings": SETTINGS.model_copy(update={"standardise": "none"})}, "standardise: none"),
    ],
)
def test_a_model_that_has_nothing_to_adapt_is_refused(
    trained: Scorer, change: dict[str, object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        adapt_scorer(replace(trained, **change), OtherScanner(6), list("abcdef"))


class _Some(OtherScanner):
    def __init__(self, indices: range) -> None:
        super().__init__(len(indices))
        self.indices = indices

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        self.n = max(self.indices) + 1
        return super().__getitem__(self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)
