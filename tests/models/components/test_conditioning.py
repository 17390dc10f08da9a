from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from anomaly.core.covariates import AGE_AND_SEX, UNKNOWN_COVARIATES, Covariate, covariates
from anomaly.core.errors import InputError, TrainingError
from anomaly.core.volume import FloatArray
from anomaly.models.components.conditioning import FARTHEST, Conditioning, condition_dropout
from tests.models.factories import MemoryCohort, healthy_cohort, strangers

DIGIT, SLANT = Covariate(name="digit", values=4), Covariate(name="slant")


@dataclass(frozen=True, eq=False)
class OfPeople(MemoryCohort):
    """A cohort whose subjects are ``people``; their volumes are not looked at."""

    people: tuple[FloatArray, ...] = ()

    def __len__(self) -> int:
        return len(self.people)

    def covariates(self, index: int) -> FloatArray:
        return self.people[index]


@dataclass(frozen=True, eq=False)
class Describing(OfPeople):
    """It says what is known of its subjects."""

    covariate_definitions: tuple[Covariate, ...] = AGE_AND_SEX


def learnt(*people: FloatArray, told: tuple[Covariate, ...] = AGE_AND_SEX) -> Conditioning:
    conditioning = Conditioning(told)
    conditioning.learn(OfPeople([], people=people))
    return conditioning


def row(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float32)


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
    assert torch.equal(learnt(covariates(30.0, "F"), UNKNOWN_COVARIATES)(strangers(3)), torch.zeros(3, 4))


def test_subjects_without_an_age_have_no_part_in_the_mean() -> None:
    conditioning = learnt(covariates(30.0), covariates(sex="F"), covariates(50.0), UNKNOWN_COVARIATES)
    assert float(conditioning.mean[0]) == 40
    assert float(conditioning.sd[0]) == 10


@pytest.mark.parametrize("people", [[covariates(sex="F"), UNKNOWN_COVARIATES], [covariates(44.0, "F")] * 2])
def test_ages_that_are_unknown_or_all_the_same_are_no_trouble(people: list[FloatArray]) -> None:
    told = learnt(*people)(
        torch.from_numpy(np.stack([covariates(45.0, "F"), covariates(44.0), UNKNOWN_COVARIATES]))
    )
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
        learnt(UNKNOWN_COVARIATES, UNKNOWN_COVARIATES)


def test_what_was_learnt_is_kept_with_the_weights() -> None:
    other = Conditioning()
    other.load_state_dict(learnt(covariates(30.0), covariates(50.0)).state_dict())
    assert float(other.mean[0]) == 40


def test_covariates_are_withheld_by_chance_and_by_nothing_else() -> None:
    people = torch.tensor([[30.0, 1.0]]).expand(2000, 2)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(condition_dropout(people, 0.0, rng), people)
    assert condition_dropout(people, 1.0, rng).isnan().all()
    some = condition_dropout(people, 0.25, rng).isnan().float()
    assert (some.mean(0) - 0.25).abs().max() < 0.05
    assert abs(float((some[:, 0] * some[:, 1]).mean()) - 0.25**2) < 0.03


def test_one_of_several_values_is_told_by_a_number_of_its_own() -> None:
    conditioning = learnt(row(0, 2.0), row(1, 4.0), row(2, 2.0), row(3, 4.0), told=(DIGIT, SLANT))
    told = conditioning(torch.tensor([[2.0, 4.0], [0.0, math.nan], [math.nan, 2.0]]))
    assert told.tolist() == [[0, 0, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, -1, 1]]
    assert conditioning.size == 6


def test_the_spread_of_a_number_is_its_own_whatever_its_unit() -> None:
    conditioning = learnt(row(0.010), row(0.012), told=(SLANT,))
    torch.testing.assert_close(conditioning(torch.tensor([[0.012]])), torch.tensor([[1.0, 1.0]]))


def test_a_value_that_no_training_subject_had_counts_as_not_known() -> None:
    told = learnt(row(0), row(2), row(2), told=(DIGIT,))(torch.tensor([[1.0], [2.0], [7.0], [0.5], [math.nan]]))
    assert told.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_unknown_subjects_have_as_many_covariates_as_the_model_is_told() -> None:
    conditioning = Conditioning((DIGIT,))
    assert conditioning.unknown(3).shape == (3, 1)
    assert not conditioning(conditioning.unknown(3)).any()


@pytest.mark.parametrize("wrong", [4.0, -1.0, 1.5])
def test_a_value_that_there_is_not_is_refused_with_its_scan(wrong: float) -> None:
    with pytest.raises(TrainingError, match=rf"digit \(one of 0 to 3\), but training scan 2 of 3 .* {wrong:g};"):
        learnt(row(0), row(wrong), row(math.nan), told=(DIGIT,))


def test_volumes_that_come_with_other_covariates_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"is told digit \(one of 0 to 3\), but .* 2 number\(s\) of each"):
        learnt(covariates(30.0, "F"), covariates(40.0, "M"), told=(DIGIT,))
    with pytest.raises(TrainingError, match=r"come with 1 or 2 number\(s\)"):
        learnt(row(0), covariates(40.0, "M"), told=(DIGIT,))


def test_volumes_that_say_what_they_come_with_are_taken_at_their_word() -> None:
    cohort = Describing([], people=(covariates(30.0, "F"), covariates(40.0, "M")))
    Conditioning().learn(cohort)
    with pytest.raises(TrainingError, match=r"is told weight \(a number\), sex .* come with age \(a number\), sex"):
        Conditioning((Covariate(name="weight"), AGE_AND_SEX[1])).learn(cohort)


def test_what_is_missing_of_all_is_named() -> None:
    with pytest.raises(TrainingError, match="found no digit of any of the 2 training scans"):
        learnt(row(math.nan), row(math.nan), told=(DIGIT,))


def test_subjects_of_another_kind_than_those_trained_on_are_refused() -> None:
    with pytest.raises(InputError, match=r"found 2 covariate\(s\).*expected 1: digit"):
        Conditioning((DIGIT,))(strangers(3))


def test_a_sex_that_no_training_subject_had_is_not_passed_on() -> None:
    conditioning = learnt(covariates(30.0, "F"), covariates(50.0, "F"))
    told = conditioning(
        torch.from_numpy(np.stack([covariates(40.0, "F"), covariates(40.0, "M"), covariates(40.0)]))
    )
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[1], told[2])
