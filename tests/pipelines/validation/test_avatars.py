from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.core.errors import ConfigError
from anomaly.models.registry import create, parse_settings
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from pipelines.validation.baselines.naive_bayes_models import FeatureModel, PixelModel
from pipelines.validation.checks.avatars.conditional_samples import (
    check_conditional_samples,
    conditions_with_hair,
    with_one_changed,
)
from pipelines.validation.checks.avatars.latent_arithmetic import check_latent_arithmetic
from pipelines.validation.checks.avatars.out_of_distribution import (
    ScoresByPart,
    check_out_of_distribution,
    detection_measures,
)
from pipelines.validation.checks.avatars.pixel_dependence import check_pixel_dependence
from pipelines.validation.checks.avatars.samples import check_samples
from pipelines.validation.checks.avatars.unobserved_combinations import check_unobserved_combinations
from pipelines.validation.checks.avatars.validity import assess_validity
from pipelines.validation.checks.generation import check_generation
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.labelled_dataset import NOT_VISIBLE, LabelledImages
from pipelines.validation.model_under_test import Dataset
from tests.pipelines.validation.small_avatars import (
    Drawing,
    Forgetful,
    Noise,
    Pixels,
    Tailor,
    small_dataset,
    under_test,
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return small_dataset()


def test_looks_that_are_not_learnt_are_new_ones(dataset: Dataset, tmp_path: Path) -> None:
    run_checks_in_worker = under_test(dataset, Noise(), tmp_path)
    known = {tuple(row) for row in dataset.train.labels}
    found = [tuple(row) for row in run_checks_in_worker.novel_test_images.labels]
    assert 0 < len(found) < len(dataset.test)
    assert not known & set(found)
    assert sum(tuple(row) not in known for row in dataset.test.labels) == len(found)


def law_looks(dataset: Dataset, n: int = 4000) -> np.ndarray:
    assert dataset.avatars is not None
    return dataset.avatars.images("requests", n).labels


def test_looks_of_the_law_are_read_rightly(dataset: Dataset) -> None:
    found = assess_validity(dataset, dataset.test.pixels)
    assert (found.codes == dataset.test.labels).all()
    assert found.valid.all()
    assert found.mse.max() == 0


def test_a_bald_look_is_read_without_a_hair_colour(dataset: Dataset) -> None:
    bald = dataset.test.labels[:, 1] == NOT_VISIBLE
    assert bald.any()
    assert (assess_validity(dataset, dataset.test.pixels[bald]).codes[:, 1] == NOT_VISIBLE).all()


def test_what_the_classifier_is_sure_of_is_no_look_where_the_picture_is_unlike_it(dataset: Dataset) -> None:
    pixels = dataset.test.pixels[:5].copy()
    assert assess_validity(dataset, pixels * 0.9 + 0.02).valid.sum() < 5
    reading = dataset.classify(pixels)
    assert (reading.confidence > 0.9).all()
    far = np.where(np.arange(pixels.shape[2]) < 4, 1 - pixels, pixels).astype(np.float32)
    assert not assess_validity(dataset, far).valid.any()


def test_a_generator_that_draws_from_the_law_follows_both_rules(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(under_test(dataset, Drawing(dataset, law_looks(dataset)), tmp_path)).measures
    assert found["valid"] == 1
    assert found["chi_square_p"] > 0.01
    assert found["total_variation"] < 0.08
    assert found["impossible_values"] == 0
    assert found["novel"] == pytest.approx(found["novel_expected"], abs=0.06)
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.2)
    assert found["distinct_ratio"] == pytest.approx(1, abs=0.1)
    assert found["attribute_difference_ratio"] == pytest.approx(1, abs=0.05)


def test_a_generator_that_returns_the_fifty_draws_by_the_law_and_nothing_new(
    dataset: Dataset, tmp_path: Path
) -> None:
    assert dataset.avatars is not None
    fifty = distribution.codes(dataset.avatars.observed)
    found = check_samples(under_test(dataset, Drawing(dataset, fifty), tmp_path)).measures
    assert found["valid"] == 1
    assert found["total_variation"] < 0.1
    assert found["novel"] == 0
    assert found["distinct"] < 0.2


def test_a_generator_that_returns_what_it_learnt_draws_nothing_unseen(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(under_test(dataset, Drawing(dataset, dataset.train.labels), tmp_path)).measures
    assert found["unseen"] == 0
    assert found["novel"] > 0.5


def test_a_generator_that_draws_all_values_alike_breaks_the_law(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(
        under_test(dataset, Drawing(dataset, dataset.avatars.images("test", 900, 1e6).labels), tmp_path)
    )  # type: ignore[union-attr]
    assert found.measures["chi_square_p"] == pytest.approx(5e-4, rel=1)
    assert found.measures["total_variation"] > 0.2
    assert found.measures["impossible_values"] > 0.1
    table = found.tables["Frequency of each value"]
    assert len(table) == sum(len(values) for values in distribution.VALUES)
    assert table[1] == {"attribute": "top_type", "value": "LongHairBun", "distribution": 0.0,
                        "samples": pytest.approx(1 / 7, abs=0.06)}  # fmt: skip


def test_noise_is_no_look_and_says_nothing_of_the_law(dataset: Dataset, tmp_path: Path) -> None:
    found = check_samples(under_test(dataset, Noise(), tmp_path))
    assert found.measures["valid"] == 0
    assert "novel" not in found.measures
    assert "cannot be compared with the distribution" in found.notes[1]


def test_generated_looks_go_through_the_exam_of_any_generator(dataset: Dataset, tmp_path: Path) -> None:
    found = check_generation(under_test(dataset, Drawing(dataset, law_looks(dataset)), tmp_path)).measures
    assert found["confident_fraction"] == 1
    assert found["class_total_variation"] < 0.1


def test_a_model_that_does_as_asked_changes_one_feature_only(dataset: Dataset, tmp_path: Path) -> None:
    found = check_conditional_samples(under_test(dataset, Tailor(dataset), tmp_path)).measures
    assert found["condition_accuracy_lowest"] == found["condition_accuracy_all"] == found["valid"] == 1
    assert found["single_change_lowest"] == 1
    assert found["off_target_change"] == 0


def test_a_conditional_model_is_asked_for_looks_of_the_law_that_it_may_not_have_seen(
    dataset: Dataset, tmp_path: Path
) -> None:
    found = check_samples(under_test(dataset, Tailor(dataset), tmp_path)).measures
    assert found["valid"] == 1
    assert found["total_variation"] < 0.08
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.2)
    assert found["distinct_ratio"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("ignored", [0, 2, 4])
def test_a_model_that_ignores_a_feature_is_found_out(dataset: Dataset, ignored: int, tmp_path: Path) -> None:
    found = check_conditional_samples(under_test(dataset, Tailor(dataset, ignored=ignored), tmp_path)).measures
    name = distribution.Attributes._fields[ignored]
    assert found["condition_accuracy_lowest"] < 0.6
    assert found["single_change_lowest"] == found[f"single_change_{name}"] < 0.6


def test_a_model_that_changes_the_clothes_with_the_accessory_is_found_out(dataset: Dataset, tmp_path: Path) -> None:
    found = check_conditional_samples(under_test(dataset, Tailor(dataset, follows=(2, 3)), tmp_path)).measures
    assert found["others_unchanged_accessories_type"] == 0
    assert found["single_change_accessories_type"] == 0
    assert found["others_unchanged_hair_color"] == 1
    assert found["off_target_change"] > 0.05


def test_a_changed_request_differs_in_one_value_that_the_law_allows(dataset: Dataset) -> None:
    assert dataset.avatars is not None
    before = conditions_with_hair(dataset.avatars, 300)
    assert (before != NOT_VISIBLE).all()
    for feature, theta in enumerate(distribution.theta()):
        after = with_one_changed(before, feature, np.random.default_rng(0))
        assert (after[:, feature] != before[:, feature]).all()
        assert (theta[after[:, feature]] > 0).all()
        others = np.delete((after == before) | (after == NOT_VISIBLE), feature, axis=1)
        assert others.all()


def test_exact_codes_can_be_added_and_subtracted(dataset: Dataset, tmp_path: Path) -> None:
    found = check_latent_arithmetic(under_test(dataset, Pixels(), tmp_path)).measures
    assert found["added"] == found["removed"] == 1
    assert found["success_lowest"] > 0.3  # the mean difference also holds what comes with sunglasses by chance


def test_codes_that_say_nothing_cannot(dataset: Dataset, tmp_path: Path) -> None:
    found = check_latent_arithmetic(under_test(dataset, Forgetful(), tmp_path)).measures
    assert found["success"] < 0.2


def test_ten_new_looks_are_none_of_the_fifty_and_have_their_probability(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.avatars is not None
    found = check_unobserved_combinations(
        under_test(dataset, FeatureModel(NaiveBayesSettings(of="features"), dataset.avatars), tmp_path)
    )
    assert found.measures["unobserved_fraction"] == found.measures["distinct_fraction"] == 1
    (rows,) = found.tables.values()
    assert len(rows) == 10
    before = {distribution.visible(combination) for combination in dataset.avatars.observed}
    for row in rows:
        probability = row.pop("probability")
        combination = distribution.Attributes(**row)
        assert distribution.visible(combination) not in before
        assert probability == pytest.approx(distribution.probabilities([combination], distribution.theta())[0])


def test_naive_bayes_of_features_follows_both_rules(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.avatars is not None
    model = FeatureModel(NaiveBayesSettings(of="features"), dataset.avatars)
    found = check_samples(under_test(dataset, model, tmp_path)).measures
    assert found["valid"] == 1
    assert found["chi_square_p"] > 0.01
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.25)


def test_naive_bayes_of_pixels_draws_no_look(dataset: Dataset, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels"), dataset.train.grid)
    fit(model, dataset.train, (), FitRun(tmp_path))
    found = check_samples(under_test(dataset, model, tmp_path)).measures
    assert found["valid"] < 0.05


def test_the_pixels_of_a_look_depend_on_each_other_and_those_of_naive_bayes_do_not(
    dataset: Dataset, tmp_path: Path
) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels"), dataset.train.grid)
    fit(model, dataset.train, (), FitRun(tmp_path))
    found = check_pixel_dependence(under_test(dataset, model, tmp_path))
    assert found.measures["neighbour_correlation"] == pytest.approx(1, abs=1e-6)
    assert found.measures["neighbour_correlation_generated"] == pytest.approx(0, abs=0.05)
    assert found.measures["entropy_of_model"] > 20 * found.measures["entropy_of_distribution"]
    assert "correlated by 1.00" in found.notes[0]


def test_naive_bayes_of_pixels_finds_impossible_colours_surprising(dataset: Dataset, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels", alpha=0.01), dataset.train.grid)
    fit(model, dataset.train, (), FitRun(tmp_path))
    images = torch.from_numpy(dataset.test.pixels[:3])[:, None].clone()
    images[1, :, 0:4] = 1.0
    evidence = model.evidence(images, torch.ones_like(images, dtype=torch.bool))
    negative_log_likelihood = evidence.maps["surprise"]
    assert negative_log_likelihood.shape == images.shape
    assert negative_log_likelihood[1].sum() > negative_log_likelihood[0].sum() + 50
    assert (negative_log_likelihood[:, :, 1::2, 1::2] == 0).all()
    assert evidence.reconstruction.shape == images.shape


def outcome(shift: float) -> ScoresByPart:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(3, 400))
    kinds = np.array(["eyepatch", "hat", "graphic shirt"])[np.arange(400) % 3]
    return ScoresByPart(normal[0], normal[1], normal[2] + shift * (kinds != "hat"), kinds)


def test_looks_from_outside_are_counted_by_kind() -> None:
    found = detection_measures(outcome(shift=6), (0.05, 0.1))
    assert found["auroc_eyepatch"] > 0.99
    assert found["auroc_hat"] == pytest.approx(0.5, abs=0.1)
    assert found["sensitivity_0.05"] == pytest.approx(2 / 3, abs=0.05)
    assert found["fpr_not_exceeded"] == 1


def test_a_broken_promise_is_found() -> None:
    honest = outcome(shift=0)
    broken = ScoresByPart(honest.calibration, honest.test + 1, honest.out_of_distribution, honest.kinds)
    found = detection_measures(broken, (0.05, 0.1))
    assert found["fpr_not_exceeded"] == 0
    assert found["fpr_0.05"] > 0.15


def test_components_tell_looks_from_outside(dataset: Dataset, tmp_path: Path) -> None:
    detector = create(parse_settings({"family": "pca", "components": 5}, "test"), dataset.train.grid)
    fit(detector, dataset.train, (), FitRun(tmp_path))
    found = check_out_of_distribution(under_test(dataset, detector, tmp_path))
    assert found.measures["auroc"] > 0.99
    assert found.measures["sensitivity_0.05"] > 0.95
    assert [row["avatars"] for row in found.tables["By kind"]] == [
        "with an eyepatch",
        "with a hat",
        "with a graphic shirt",
    ]


@pytest.mark.parametrize(
    "check",
    [
        check_samples,
        check_conditional_samples,
        check_latent_arithmetic,
        check_out_of_distribution,
        check_unobserved_combinations,
        check_pixel_dependence,
    ],
)
def test_a_model_that_cannot_take_an_exam_is_told_which_to_leave_out(
    check: object, dataset: Dataset, tmp_path: Path
) -> None:
    class Nothing:
        family = "nothing"

    with pytest.raises(ConfigError, match=r"'nothing' .*; remove the check"):
        check(under_test(dataset, Nothing(), tmp_path))  # type: ignore[operator]


def test_other_worlds_know_no_looks(dataset: Dataset, tmp_path: Path) -> None:
    elsewhere = Dataset(dataset.train, dataset.test, "digits", {"digit": ("0", "1")}, dataset.classifier)
    with pytest.raises(ConfigError, match="avatars"):
        check_samples(under_test(elsewhere, Drawing(dataset, law_looks(dataset)), tmp_path))


def test_what_a_picture_does_not_show_is_not_told_to_a_model(dataset: Dataset) -> None:
    images = LabelledImages(dataset.train.pixels[:1], np.array([[0, NOT_VISIBLE, 1, 2, 3]]))
    as_covariates = images.covariates(0)
    assert np.isnan(as_covariates).tolist() == [False, True, False, False, False]
    assert as_covariates[2:].tolist() == [1, 2, 3]
