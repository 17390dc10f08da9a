from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from anomaly.core.covariates import AGE_AND_SEX, UNKNOWN_COVARIATES, Covariate, covariates
from anomaly.core.errors import InputError, TrainingError
from anomaly.core.volume import FloatArray
from anomaly.models.components.conditioning import MAX_SD, Conditioning, condition_dropout
from tests.models.factories import MemoryCohort, healthy_cohort, unknown_covariates

DIGIT, SLANT = Covariate(name="digit", values=4), Covariate(name="slant")


@dataclass(frozen=True, eq=False)
class CovariateCohort(MemoryCohort):
    """A cohort without volumes, whose subjects have the covariates ``subjects``."""

    subjects: tuple[FloatArray, ...] = ()

    def __len__(self) -> int:
        return len(self.subjects)

    def covariates(self, index: int) -> FloatArray:
        return self.subjects[index]


@dataclass(frozen=True, eq=False)
class DescribedCohort(CovariateCohort):
    """A cohort that also describes its covariates."""

    covariate_definitions: tuple[Covariate, ...] = AGE_AND_SEX


def fitted(*subjects: FloatArray, definitions: tuple[Covariate, ...] = AGE_AND_SEX) -> Conditioning:
    conditioning = Conditioning(definitions)
    conditioning.fit(CovariateCohort([], subjects=subjects))
    return conditioning


def row(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float32)


def test_ages_of_the_training_subjects_are_standardised() -> None:
    cohort = healthy_cohort(10)
    conditioning = Conditioning()
    conditioning.fit(cohort)
    condition = conditioning(torch.from_numpy(np.stack([cohort.covariates(n) for n in range(10)])))
    assert abs(float(condition[:, 0].mean())) < 1e-5
    assert abs(float(condition[:, 0].std(correction=0)) - 1) < 1e-5


def test_age_and_sex_are_each_followed_by_whether_they_are_known() -> None:
    conditioning = fitted(covariates(30.0, "F"), covariates(50.0, "M"))
    condition = conditioning(
        torch.from_numpy(np.stack([covariates(50.0, "F"), covariates(40.0), covariates(sex="M")]))
    )
    expected = torch.tensor([[1.0, 1, -1, 1], [0, 1, 0, 0], [0, 0, 1, 1]])
    torch.testing.assert_close(condition, expected)


def test_unknown_covariates_are_encoded_as_zeros() -> None:
    assert torch.equal(fitted(covariates(30.0, "F"), UNKNOWN_COVARIATES)(unknown_covariates(3)), torch.zeros(3, 4))


def test_the_mean_age_is_that_of_subjects_of_known_age() -> None:
    conditioning = fitted(covariates(30.0), covariates(sex="F"), covariates(50.0), UNKNOWN_COVARIATES)
    assert float(conditioning.mean[0]) == 40
    assert float(conditioning.sd[0]) == 10


@pytest.mark.parametrize("subjects", [[covariates(sex="F"), UNKNOWN_COVARIATES], [covariates(44.0, "F")] * 2])
def test_unknown_or_constant_ages_give_finite_conditions(subjects: list[FloatArray]) -> None:
    condition = fitted(*subjects)(
        torch.from_numpy(np.stack([covariates(45.0, "F"), covariates(44.0), UNKNOWN_COVARIATES]))
    )
    assert condition.isfinite().all()


def test_a_covariate_unknown_in_training_is_set_to_0() -> None:
    conditioning = fitted(covariates(sex="F"), covariates(sex="M"))
    condition = conditioning(torch.from_numpy(np.stack([covariates(70.0, "M"), covariates(30.0, "M")])))
    assert condition.tolist() == [[0, 0, 1, 1]] * 2


def test_ages_far_from_the_training_subjects_are_clipped() -> None:
    conditioning = fitted(covariates(30.0), covariates(50.0))
    condition = conditioning(torch.tensor([[400.0, math.nan], [-400.0, math.nan]]))
    assert condition[:, 0].tolist() == [MAX_SD, -MAX_SD]


def test_a_cohort_without_known_covariates_is_refused_with_a_remedy() -> None:
    with pytest.raises(TrainingError, match=r"any of the 2 training scans.*participants\.tsv.*unconditional"):
        fitted(UNKNOWN_COVARIATES, UNKNOWN_COVARIATES)


def test_the_statistics_are_part_of_the_state_dict() -> None:
    other = Conditioning()
    other.load_state_dict(fitted(covariates(30.0), covariates(50.0)).state_dict())
    assert float(other.mean[0]) == 40


def test_condition_dropout_is_independent_for_each_covariate() -> None:
    subjects = torch.tensor([[30.0, 1.0]]).expand(2000, 2)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(condition_dropout(subjects, 0.0, rng), subjects)
    assert condition_dropout(subjects, 1.0, rng).isnan().all()
    some = condition_dropout(subjects, 0.25, rng).isnan().float()
    assert (some.mean(0) - 0.25).abs().max() < 0.05
    assert abs(float((some[:, 0] * some[:, 1]).mean()) - 0.25**2) < 0.03


def test_categorical_covariates_are_one_hot_encoded() -> None:
    conditioning = fitted(row(0, 2.0), row(1, 4.0), row(2, 2.0), row(3, 4.0), definitions=(DIGIT, SLANT))
    condition = conditioning(torch.tensor([[2.0, 4.0], [0.0, math.nan], [math.nan, 2.0]]))
    assert condition.tolist() == [[0, 0, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, -1, 1]]
    assert conditioning.size == 6


def test_numbers_are_standardised_in_any_unit() -> None:
    conditioning = fitted(row(0.010), row(0.012), definitions=(SLANT,))
    torch.testing.assert_close(conditioning(torch.tensor([[0.012]])), torch.tensor([[1.0, 1.0]]))


def test_a_value_absent_in_training_counts_as_unknown() -> None:
    condition = fitted(row(0), row(2), row(2), definitions=(DIGIT,))(
        torch.tensor([[1.0], [2.0], [7.0], [0.5], [math.nan]])
    )
    assert condition.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_unknown_subjects_have_the_number_of_covariates_of_the_model() -> None:
    conditioning = Conditioning((DIGIT,))
    assert conditioning.unknown(3).shape == (3, 1)
    assert not conditioning(conditioning.unknown(3)).any()


@pytest.mark.parametrize("wrong", [4.0, -1.0, 1.5])
def test_an_invalid_value_is_refused_with_its_scan(wrong: float) -> None:
    with pytest.raises(TrainingError, match=rf"digit \(one of 0 to 3\), but training scan 2 of 3 .* {wrong:g};"):
        fitted(row(0), row(wrong), row(math.nan), definitions=(DIGIT,))


def test_volumes_with_another_number_of_covariates_are_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"is conditioned on digit \(one of 0 to 3\), but .* 2 number\(s\) of each"
    ):
        fitted(covariates(30.0, "F"), covariates(40.0, "M"), definitions=(DIGIT,))
    with pytest.raises(TrainingError, match=r"have 1 or 2 number\(s\)"):
        fitted(row(0), covariates(40.0, "M"), definitions=(DIGIT,))


def test_volumes_with_another_description_of_covariates_are_refused() -> None:
    cohort = DescribedCohort([], subjects=(covariates(30.0, "F"), covariates(40.0, "M")))
    Conditioning().fit(cohort)
    with pytest.raises(
        TrainingError, match=r"is conditioned on weight \(a number\), sex .* have age \(a number\), sex"
    ):
        Conditioning((Covariate(name="weight"), AGE_AND_SEX[1])).fit(cohort)


def test_the_covariate_that_is_missing_for_all_subjects_is_named() -> None:
    with pytest.raises(TrainingError, match="found no digit of any of the 2 training scans"):
        fitted(row(math.nan), row(math.nan), definitions=(DIGIT,))


def test_a_wrong_number_of_covariates_is_refused() -> None:
    with pytest.raises(InputError, match=r"found 2 covariate\(s\).*expected 1: digit"):
        Conditioning((DIGIT,))(unknown_covariates(3))


def test_a_sex_absent_in_training_is_not_used() -> None:
    conditioning = fitted(covariates(30.0, "F"), covariates(50.0, "F"))
    condition = conditioning(
        torch.from_numpy(np.stack([covariates(40.0, "F"), covariates(40.0, "M"), covariates(40.0)]))
    )
    assert torch.equal(condition[0], condition[1])
    assert torch.equal(condition[1], condition[2])
