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
from pipelines.validation.checks.avatars.conditional_samples import asked_looks, changed, requests
from pipelines.validation.checks.avatars.latent_arithmetic import code_arithmetic
from pipelines.validation.checks.avatars.out_of_distribution import Outcome, measures_of, outliers
from pipelines.validation.checks.avatars.pixel_dependence import independence
from pipelines.validation.checks.avatars.samples import drawn_looks
from pipelines.validation.checks.avatars.unobserved_combinations import new_looks
from pipelines.validation.checks.avatars.validity import judged
from pipelines.validation.checks.generation import generation
from pipelines.validation.datasets.avatars import distribution as law
from pipelines.validation.datasets.avatars.settings import NaiveBayesSettings
from pipelines.validation.labelled_dataset import NOT_SHOWN, Pictures
from pipelines.validation.model_under_test import World
from tests.pipelines.validation.small_avatars import (
    Drawing,
    Forgetful,
    Noise,
    Pixels,
    Tailor,
    candidate,
    small_world,
)


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


def test_looks_that_are_not_learnt_are_new_ones(world: World, tmp_path: Path) -> None:
    examined = candidate(world, Noise(), tmp_path)
    known = {tuple(row) for row in world.train.labels}
    found = [tuple(row) for row in examined.not_learnt.labels]
    assert 0 < len(found) < len(world.test)
    assert not known & set(found)
    assert sum(tuple(row) not in known for row in world.test.labels) == len(found)


def law_looks(world: World, n: int = 4000) -> np.ndarray:
    assert world.avatars is not None
    return world.avatars.looks("requests", n).labels


def test_looks_of_the_law_are_read_rightly(world: World) -> None:
    found = judged(world, world.test.pixels)
    assert (found.rows == world.test.labels).all()
    assert found.valid.all()
    assert found.error.max() == 0


def test_a_bald_look_is_read_without_a_hair_colour(world: World) -> None:
    bald = world.test.labels[:, 1] == NOT_SHOWN
    assert bald.any()
    assert (judged(world, world.test.pixels[bald]).rows[:, 1] == NOT_SHOWN).all()


def test_what_the_classifier_is_sure_of_is_no_look_where_the_picture_is_unlike_it(world: World) -> None:
    pixels = world.test.pixels[:5].copy()
    assert judged(world, pixels * 0.9 + 0.02).valid.sum() < 5
    reading = world.read(pixels)
    assert (reading.sure > 0.9).all()
    far = np.where(np.arange(pixels.shape[2]) < 4, 1 - pixels, pixels).astype(np.float32)
    assert not judged(world, far).valid.any()


def test_a_generator_that_draws_from_the_law_follows_both_rules(world: World, tmp_path: Path) -> None:
    found = drawn_looks(candidate(world, Drawing(world, law_looks(world)), tmp_path)).measures
    assert found["valid"] == 1
    assert found["chi_square_p"] > 0.01
    assert found["apart"] < 0.08
    assert found["impossible"] == 0
    assert found["novel"] == pytest.approx(found["novel_of_law"], abs=0.06)
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.2)
    assert found["distinct_ratio"] == pytest.approx(1, abs=0.1)
    assert found["differing_ratio"] == pytest.approx(1, abs=0.05)


def test_a_generator_that_returns_the_fifty_draws_by_the_law_and_nothing_new(world: World, tmp_path: Path) -> None:
    assert world.avatars is not None
    fifty = law.codes(world.avatars.observed)
    found = drawn_looks(candidate(world, Drawing(world, fifty), tmp_path)).measures
    assert found["valid"] == 1
    assert found["apart"] < 0.1
    assert found["novel"] == 0
    assert found["distinct"] < 0.2


def test_a_generator_that_returns_what_it_learnt_draws_nothing_unseen(world: World, tmp_path: Path) -> None:
    found = drawn_looks(candidate(world, Drawing(world, world.train.labels), tmp_path)).measures
    assert found["unseen"] == 0
    assert found["novel"] > 0.5


def test_a_generator_that_draws_all_values_alike_breaks_the_law(world: World, tmp_path: Path) -> None:
    found = drawn_looks(candidate(world, Drawing(world, world.avatars.looks("test", 900, 1e6).labels), tmp_path))  # type: ignore[union-attr]
    assert found.measures["chi_square_p"] == pytest.approx(5e-4, rel=1)
    assert found.measures["apart"] > 0.2
    assert found.measures["impossible"] > 0.1
    table = found.tables["How often each value is drawn"]
    assert len(table) == sum(len(values) for values in law.VALUES)
    assert table[1] == {"feature": "top_type", "value": "LongHairBun", "law": 0.0,
                        "drawn": pytest.approx(1 / 7, abs=0.06)}  # fmt: skip


def test_noise_is_no_look_and_says_nothing_of_the_law(world: World, tmp_path: Path) -> None:
    found = drawn_looks(candidate(world, Noise(), tmp_path))
    assert found.measures["valid"] == 0
    assert "novel" not in found.measures
    assert "nothing can be said of the law" in found.notes[1]


def test_generated_looks_go_through_the_exam_of_any_generator(world: World, tmp_path: Path) -> None:
    found = generation(candidate(world, Drawing(world, law_looks(world)), tmp_path)).measures
    assert found["legible"] == 1
    assert found["kinds_apart"] < 0.1


def test_a_model_that_does_as_asked_changes_one_feature_only(world: World, tmp_path: Path) -> None:
    found = asked_looks(candidate(world, Tailor(world), tmp_path)).measures
    assert found["as_asked_lowest"] == found["as_asked_all"] == found["valid"] == 1
    assert found["change_lowest"] == 1
    assert found["spill"] == 0


def test_a_conditional_model_is_asked_for_looks_of_the_law_that_it_may_not_have_seen(
    world: World, tmp_path: Path
) -> None:
    found = drawn_looks(candidate(world, Tailor(world), tmp_path)).measures
    assert found["valid"] == 1
    assert found["apart"] < 0.08
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.2)
    assert found["distinct_ratio"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("ignored", [0, 2, 4])
def test_a_model_that_ignores_a_feature_is_found_out(world: World, ignored: int, tmp_path: Path) -> None:
    found = asked_looks(candidate(world, Tailor(world, ignored=ignored), tmp_path)).measures
    name = law.Look._fields[ignored]
    assert found["as_asked_lowest"] < 0.6
    assert found["change_lowest"] == found[f"change_{name}"] < 0.6


def test_a_model_that_changes_the_clothes_with_the_accessory_is_found_out(world: World, tmp_path: Path) -> None:
    found = asked_looks(candidate(world, Tailor(world, follows=(2, 3)), tmp_path)).measures
    assert found["others_stay_accessories_type"] == 0
    assert found["change_accessories_type"] == 0
    assert found["others_stay_hair_color"] == 1
    assert found["spill"] > 0.05


def test_a_changed_request_differs_in_one_value_that_the_law_allows(world: World) -> None:
    assert world.avatars is not None
    before = requests(world.avatars, 300)
    assert (before != NOT_SHOWN).all()
    for feature, theta in enumerate(law.theta()):
        after = changed(before, feature, np.random.default_rng(0))
        assert (after[:, feature] != before[:, feature]).all()
        assert (theta[after[:, feature]] > 0).all()
        others = np.delete((after == before) | (after == NOT_SHOWN), feature, axis=1)
        assert others.all()


def test_exact_codes_can_be_added_and_subtracted(world: World, tmp_path: Path) -> None:
    found = code_arithmetic(candidate(world, Pixels(), tmp_path)).measures
    assert found["put_on"] == found["taken_off"] == 1
    assert found["success_lowest"] > 0.3  # the mean difference also holds what comes with sunglasses by chance


def test_codes_that_say_nothing_cannot(world: World, tmp_path: Path) -> None:
    found = code_arithmetic(candidate(world, Forgetful(), tmp_path)).measures
    assert found["success"] < 0.2


def test_ten_new_looks_are_none_of_the_fifty_and_have_their_probability(world: World, tmp_path: Path) -> None:
    assert world.avatars is not None
    found = new_looks(candidate(world, FeatureModel(NaiveBayesSettings(of="features"), world.avatars), tmp_path))
    assert found.measures["new"] == found.measures["different"] == 1
    (rows,) = found.tables.values()
    assert len(rows) == 10
    before = {law.visible(look) for look in world.avatars.observed}
    for row in rows:
        probability = row.pop("probability")
        look = law.Look(**row)
        assert law.visible(look) not in before
        assert probability == pytest.approx(law.probabilities([look], law.theta())[0])


def test_naive_bayes_of_features_follows_both_rules(world: World, tmp_path: Path) -> None:
    assert world.avatars is not None
    model = FeatureModel(NaiveBayesSettings(of="features"), world.avatars)
    found = drawn_looks(candidate(world, model, tmp_path)).measures
    assert found["valid"] == 1
    assert found["chi_square_p"] > 0.01
    assert found["unseen_ratio"] == pytest.approx(1, abs=0.25)


def test_naive_bayes_of_pixels_draws_no_look(world: World, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels"), world.train.grid)
    fit(model, world.train, (), FitRun(tmp_path))
    found = drawn_looks(candidate(world, model, tmp_path)).measures
    assert found["valid"] < 0.05


def test_the_pixels_of_a_look_depend_on_each_other_and_those_of_naive_bayes_do_not(
    world: World, tmp_path: Path
) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels"), world.train.grid)
    fit(model, world.train, (), FitRun(tmp_path))
    found = independence(candidate(world, model, tmp_path))
    assert found.measures["together"] == pytest.approx(1, abs=1e-6)
    assert found.measures["together_drawn"] == pytest.approx(0, abs=0.05)
    assert found.measures["nats_of_model"] > 20 * found.measures["nats_of_law"]
    assert "correlated by 1.00" in found.notes[0]


def test_naive_bayes_of_pixels_finds_impossible_colours_surprising(world: World, tmp_path: Path) -> None:
    model = PixelModel(NaiveBayesSettings(of="pixels", alpha=0.01), world.train.grid)
    fit(model, world.train, (), FitRun(tmp_path))
    images = torch.from_numpy(world.test.pixels[:3])[:, None].clone()
    images[1, :, 0:4] = 1.0
    evidence = model.evidence(images, torch.ones_like(images, dtype=torch.bool))
    surprise = evidence.maps["surprise"]
    assert surprise.shape == images.shape
    assert surprise[1].sum() > surprise[0].sum() + 50
    assert (surprise[:, :, 1::2, 1::2] == 0).all()
    assert evidence.reconstruction.shape == images.shape


def outcome(shift: float) -> Outcome:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(3, 400))
    kinds = np.array(["eyepatch", "hat", "graphic shirt"])[np.arange(400) % 3]
    return Outcome(normal[0], normal[1], normal[2] + shift * (kinds != "hat"), kinds)


def test_looks_from_outside_are_counted_by_kind() -> None:
    found = measures_of(outcome(shift=6), (0.05, 0.1))
    assert found["auroc_eyepatch"] > 0.99
    assert found["auroc_hat"] == pytest.approx(0.5, abs=0.1)
    assert found["flagged_0.05"] == pytest.approx(2 / 3, abs=0.05)
    assert found["promises_kept"] == 1


def test_a_broken_promise_is_found() -> None:
    honest = outcome(shift=0)
    broken = Outcome(honest.calibration, honest.test + 1, honest.outside, honest.kinds)
    found = measures_of(broken, (0.05, 0.1))
    assert found["promises_kept"] == 0
    assert found["false_flags_0.05"] > 0.15


def test_components_tell_looks_from_outside(world: World, tmp_path: Path) -> None:
    detector = create(parse_settings({"family": "pca", "components": 5}, "test"), world.train.grid)
    fit(detector, world.train, (), FitRun(tmp_path))
    found = outliers(candidate(world, detector, tmp_path))
    assert found.measures["auroc"] > 0.99
    assert found.measures["flagged_0.05"] > 0.95
    assert [row["looks"] for row in found.tables["By kind"]] == [
        "with an eyepatch",
        "with a hat",
        "with a graphic shirt",
    ]


@pytest.mark.parametrize("exam", [drawn_looks, asked_looks, code_arithmetic, outliers, new_looks, independence])
def test_a_model_that_cannot_take_an_exam_is_told_which_to_leave_out(
    exam: object, world: World, tmp_path: Path
) -> None:
    class Nothing:
        family = "nothing"

    with pytest.raises(ConfigError, match=r"'nothing' .*; leave out the exam"):
        exam(candidate(world, Nothing(), tmp_path))  # type: ignore[operator]


def test_other_worlds_know_no_looks(world: World, tmp_path: Path) -> None:
    elsewhere = World(world.train, world.test, "digits", {"digit": ("0", "1")}, world.classifier)
    with pytest.raises(ConfigError, match="avatars"):
        drawn_looks(candidate(elsewhere, Drawing(world, law_looks(world)), tmp_path))


def test_what_a_picture_does_not_show_is_not_told_to_a_model(world: World) -> None:
    pictures = Pictures(world.train.pixels[:1], np.array([[0, NOT_SHOWN, 1, 2, 3]]))
    told = pictures.covariates(0)
    assert np.isnan(told).tolist() == [False, True, False, False, False]
    assert told[2:].tolist() == [1, 2, 3]
