from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from anomaly.core.covariates import UNKNOWN_COVARIATES, covariates
from anomaly.core.errors import ConfigError
from anomaly.core.volume import FloatArray
from anomaly.scoring.normative import CovariateRegression, NormativeModel, fit_sd_growth

SHAPE = (12, 12, 12)
MASK = np.ones(SHAPE, dtype=bool)
PER_DECADE, MALE_MINUS_FEMALE, NOISE_SD = 0.5, -0.8, 0.4
AGES = np.linspace(20, 80, 60)
SEXES = ["F", "M"] * 30
SIGMA = (1.0, 1.0, 1.0)


def healthy_maps(ages: Sequence[float], sexes: Sequence[str], slope: float = PER_DECADE) -> list[FloatArray]:
    rng = np.random.default_rng(0)
    sex = [{"F": -0.5, "M": 0.5}.get(name, 0.0) for name in sexes]
    means = [3 + slope * (age - 50) / 10 + MALE_MINUS_FEMALE * s for age, s in zip(ages, sex, strict=True)]
    return [(mean + rng.normal(0, NOISE_SD, SHAPE)).astype(np.float32) for mean in means]


def fit(
    maps: Sequence[FloatArray], subjects: Sequence[FloatArray]
) -> tuple[NormativeModel | None, FloatArray, FloatArray]:
    """Return the model, and mean and SD of all ages."""
    regression = CovariateRegression(["residual"], SHAPE)
    for values, subject in zip(maps, subjects, strict=True):
        regression.add({"residual": values}, MASK, subject)
    mean, sd = np.mean(maps, axis=0), np.std(maps, axis=0, ddof=1)
    return regression.fit({"residual": mean}, {"residual": sd}, SIGMA), mean, sd


def fitted(
    maps: Sequence[FloatArray], subjects: Sequence[FloatArray]
) -> tuple[NormativeModel, FloatArray, FloatArray]:
    model, mean, sd = fit(maps, subjects)
    assert model is not None
    return model, mean, sd


SUBJECTS = [covariates(age, sex) for age, sex in zip(AGES, SEXES, strict=True)]


@pytest.mark.parametrize(("age", "sex", "of_sex"), [(25, "F", 0.4), (75, "M", -0.4), (50, "", 0.0)])
def test_the_expected_map_is_that_of_the_age_and_sex(age: float, sex: str, of_sex: float) -> None:
    model, mean, sd = fitted(healthy_maps(AGES, SEXES), SUBJECTS)
    x = model.design(covariates(age, sex))
    assert x is not None
    expected = 3 + PER_DECADE * (age - 50) / 10 + of_sex

    z = model.adjust("residual", (expected + NOISE_SD - mean) / sd, x)

    assert float(z.mean()) == pytest.approx(1, abs=0.1)
    assert float(z.std()) < 0.3


def test_healthy_maps_have_a_mean_of_0_and_an_sd_of_1_at_every_age() -> None:
    maps = healthy_maps(AGES, SEXES)
    model, mean, sd = fitted(maps, SUBJECTS)
    for values, subject in zip(maps, SUBJECTS, strict=True):
        x = model.design(subject)
        assert x is not None
        z = model.adjust("residual", (values - mean) / sd, x)
        assert abs(float(z.mean())) < 0.15
        assert float(z.std()) == pytest.approx(1, abs=0.1)


def test_a_map_that_does_not_depend_on_age_keeps_its_mean_and_sd() -> None:
    rng = np.random.default_rng(1)
    maps = [rng.normal(0, 1, SHAPE).astype(np.float32) for _ in AGES]
    model, _, _ = fitted(maps, SUBJECTS)

    assert float(np.abs(model.coefficients["residual"]).max()) < 0.1
    assert float(model.sd_ratio["residual"].mean()) == pytest.approx(1, abs=0.02)


def test_an_age_outside_the_reference_counts_as_the_nearest_age_within() -> None:
    model, _, _ = fitted(healthy_maps(AGES, SEXES), SUBJECTS)
    np.testing.assert_array_equal(model.design(covariates(101.5, "M")), model.design(covariates(80, "M")))
    np.testing.assert_array_equal(model.design(covariates(3, "F")), model.design(covariates(20, "F")))

    group = model.group(covariates(101.5, "M"))
    assert (group.subject_age, group.age, group.sex, group.age_range) == (90, 80, "male", (20, 80))


def test_a_subject_of_unknown_age_has_no_expected_map() -> None:
    model, _, _ = fitted(healthy_maps(AGES, SEXES), SUBJECTS)
    group = model.group(covariates(None, "F"))
    assert model.design(covariates(None, "F")) is None
    assert model.sd_factor(UNKNOWN_COVARIATES) == 1
    assert (group.subject_age, group.age, group.sex) == (None, None, "")


def test_scans_of_unknown_age_or_sex_do_not_bias_the_regression() -> None:
    sexes = ["F", "M", ""] * 20
    subjects = [covariates(age, sex) for age, sex in zip(AGES, sexes, strict=True)]
    maps = healthy_maps(AGES, sexes)
    unknown = [np.full(SHAPE, 50, dtype=np.float32)] * 4
    model, mean, sd = fitted([*maps, *unknown], [*subjects, *[UNKNOWN_COVARIATES] * 4])
    x = model.design(covariates(70, "M"))
    assert x is not None
    expected = 3 + PER_DECADE * 2 + MALE_MINUS_FEMALE / 2
    z = model.adjust("residual", (expected - mean) / sd, x)
    assert abs(float(z.mean())) < 0.1


def test_with_subjects_of_one_sex_the_slope_of_sex_is_zero() -> None:
    model, _, _ = fitted(healthy_maps(AGES, ["F"] * 60), [covariates(age, "F") for age in AGES])
    assert float(np.abs(model.coefficients["residual"][2]).max()) < 0.01


@pytest.mark.parametrize(
    "subjects", [SUBJECTS[:19], [UNKNOWN_COVARIATES] * 60, [covariates(50, "F")] * 60, []], ids=len
)
def test_without_enough_scans_of_different_known_ages_there_is_no_model(subjects: list[FloatArray]) -> None:
    regression = CovariateRegression(["residual"], SHAPE)
    for subject in subjects:
        regression.add({"residual": np.ones(SHAPE, dtype=np.float32)}, MASK, subject)
    assert regression.fit({"residual": np.ones(SHAPE)}, {"residual": np.ones(SHAPE)}, SIGMA) is None


def test_voxels_that_few_brains_cover_keep_the_mean_and_sd_of_all_ages() -> None:
    regression = CovariateRegression(["residual"], SHAPE)
    for number, (values, subject) in enumerate(zip(healthy_maps(AGES, SEXES), SUBJECTS, strict=True)):
        mask = MASK.copy()
        mask[6:] = number < 10
        regression.add({"residual": values}, mask, subject)
    model = regression.fit({"residual": np.full(SHAPE, 3)}, {"residual": np.ones(SHAPE)}, SIGMA)
    assert model is not None
    assert not model.coefficients["residual"][:, 6:].any()
    assert (model.sd_ratio["residual"][6:] == 1).all()


def test_a_constant_map_stays_finite() -> None:
    constant = [np.zeros(SHAPE, dtype=np.float32)] * len(SUBJECTS)
    regression = CovariateRegression(["residual"], SHAPE)
    for values, subject in zip(constant, SUBJECTS, strict=True):
        regression.add({"residual": values}, MASK, subject)
    model = regression.fit({"residual": np.zeros(SHAPE)}, {"residual": np.ones(SHAPE)}, SIGMA)
    assert model is not None
    assert not model.coefficients["residual"].any()
    assert (model.sd_ratio["residual"] == 1).all()


def test_covariates_other_than_age_and_sex_are_refused() -> None:
    regression = CovariateRegression(["residual"], SHAPE)
    with pytest.raises(ConfigError, match=r"needs age and sex, found 3 covariates; choose voxelwise"):
        regression.add({"residual": np.ones(SHAPE, dtype=np.float32)}, MASK, np.zeros(3, dtype=np.float32))


def test_a_saved_model_is_the_same() -> None:
    model, _, _ = fitted(healthy_maps(AGES, SEXES), SUBJECTS)
    found = NormativeModel.from_arrays(model.arrays())
    assert found is not None
    np.testing.assert_array_equal(found.coefficients["residual"], model.coefficients["residual"])
    np.testing.assert_array_equal(found.sd_ratio["residual"], model.sd_ratio["residual"])
    assert (found.age_range, found.sd_growth) == (model.age_range, model.sd_growth)
    assert found.mean_age == model.mean_age == pytest.approx(50)
    assert NormativeModel.from_arrays({"appearance": np.ones(SHAPE)}) is None


def scores_of(ages: FloatArray, growth: float, noise: float) -> FloatArray:
    return np.exp(growth * (ages - 50) / 10 + np.random.default_rng(2).normal(0, noise, ages.size))


def test_the_growth_of_the_scores_is_found_in_spite_of_a_poor_scan() -> None:
    ages = np.linspace(20, 80, 24)
    scores = scores_of(ages, 0.1, 0.05)
    scores[-3] *= 8
    assert fit_sd_growth(ages, scores) == pytest.approx(0.1, abs=0.02)


def test_a_growth_that_may_be_chance_is_shrunk() -> None:
    ages = np.linspace(20, 80, 12)
    assert abs(fit_sd_growth(ages, scores_of(ages, 0, 0.3))) < 0.02


@pytest.mark.parametrize("ages", [[], [30, 40, 50], [50] * 12, [np.nan] * 12])
def test_without_enough_held_out_scans_the_sd_does_not_grow(ages: list[float]) -> None:
    assert fit_sd_growth(ages, [1.0 + 0.1 * n for n in range(len(ages))]) == 0


def test_the_sd_grows_from_the_mean_age() -> None:
    model = NormativeModel({}, {}, (20, 80), mean_age=50, sd_growth=0.1)
    assert model.sd_factor(covariates(50)) == 1
    assert model.sd_factor(covariates(70)) == pytest.approx(np.exp(0.2))
    assert model.sd_factor(covariates(110)) == pytest.approx(np.exp(0.3))
