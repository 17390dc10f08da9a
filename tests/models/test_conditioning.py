from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from anomaly.core.covariates import UNKNOWN, covariates
from anomaly.core.errors import TrainingError
from anomaly.core.volume import FloatArray
from anomaly.models.conditioning import FARTHEST, Conditioning, unknown, withheld
from tests.models.factories import MemoryCohort, healthy_cohort


@dataclass(frozen=True, eq=False)
class OfPeople(MemoryCohort):
    """A cohort whose subjects are ``people``; their volumes are not looked at."""

    people: tuple[FloatArray, ...] = ()

    def __len__(self) -> int:
        return len(self.people)

    def covariates(self, index: int) -> FloatArray:
        return self.people[index]


def learnt(*people: FloatArray) -> Conditioning:
    conditioning = Conditioning()
    conditioning.learn(OfPeople([], people=people))
    return conditioning


def test_ages_of_the_training_subjects_become_standard() -> None:
    cohort = healthy_cohort(10)
    conditioning = Conditioning()
    conditioning.learn(cohort)
    told = conditioning(torch.from_numpy(np.stack([cohort.covariates(n) for n in range(10)])))
    assert abs(float(told[:, 0].mean())) < 1e-5
    assert abs(float(told[:, 0].std(correction=0)) - 1) < 1e-5


def test_age_and_sex_are_followed_by_whether_they_are_known() -> None:
    conditioning = learnt(covariates(30.0, "F"), covariates(50.0, "M"))
    told = conditioning(torch.from_numpy(np.stack([covariates(50.0, "F"), covariates(40.0), covariates(sex="M")])))
    expected = torch.tensor([[1.0, 1, -1, 1], [0, 1, 0, 0], [0, 0, 1, 1]])
    torch.testing.assert_close(told, expected)


def test_what_is_unknown_is_told_by_zeros_alone() -> None:
    assert torch.equal(learnt(covariates(30.0, "F"), UNKNOWN)(unknown(3)), torch.zeros(3, Conditioning.size))


def test_subjects_without_an_age_have_no_part_in_the_mean() -> None:
    conditioning = learnt(covariates(30.0), covariates(sex="F"), covariates(50.0), UNKNOWN)
    assert float(conditioning.age_mean) == 40
    assert float(conditioning.age_sd) == 10


@pytest.mark.parametrize("people", [[covariates(sex="F"), UNKNOWN], [covariates(44.0, "F")] * 2])
def test_ages_that_are_unknown_or_all_the_same_are_no_trouble(people: list[FloatArray]) -> None:
    told = learnt(*people)(torch.from_numpy(np.stack([covariates(45.0, "F"), covariates(44.0), UNKNOWN])))
    assert told.isfinite().all()


def test_what_no_training_subject_had_is_not_passed_on() -> None:
    conditioning = learnt(covariates(sex="F"), covariates(sex="M"))
    told = conditioning(torch.from_numpy(np.stack([covariates(70.0, "M"), covariates(30.0, "M")])))
    assert told.tolist() == [[0, 0, 1, 1]] * 2


def test_an_age_far_from_those_seen_counts_as_the_farthest() -> None:
    conditioning = learnt(covariates(30.0), covariates(50.0))
    told = conditioning(torch.tensor([[400.0, math.nan], [-400.0, math.nan]]))
    assert told[:, 0].tolist() == [FARTHEST, -FARTHEST]


def test_subjects_of_whom_nothing_is_known_are_refused_with_a_way_out() -> None:
    with pytest.raises(TrainingError, match=r"any of the 2 training scans.*participants\.tsv.*not told"):
        learnt(UNKNOWN, UNKNOWN)


def test_what_was_learnt_is_kept_with_the_weights() -> None:
    other = Conditioning()
    other.load_state_dict(learnt(covariates(30.0), covariates(50.0)).state_dict())
    assert float(other.age_mean) == 40


def test_covariates_are_withheld_by_chance_and_by_nothing_else() -> None:
    people = torch.tensor([[30.0, 1.0]]).expand(2000, 2)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(withheld(people, 0.0, rng), people)
    assert withheld(people, 1.0, rng).isnan().all()
    some = withheld(people, 0.25, rng).isnan().float()
    assert (some.mean(0) - 0.25).abs().max() < 0.05
    assert abs(float((some[:, 0] * some[:, 1]).mean()) - 0.25**2) < 0.03
