from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from anomaly.core.errors import InputError
from pipelines.validation.baselines.naive_bayes import FeatureNaiveBayes, PixelNaiveBayes
from pipelines.validation.datasets.avatars.distribution import (
    OBSERVED_COUNTS,
    Attributes,
    entropy,
    every_combination,
    image_probabilities,
    observed_combinations,
    sample,
    theta,
    visible,
)
from pipelines.validation.datasets.avatars.rendering import RGBImages, out_of_distribution_sample, render_many

OBSERVED = observed_combinations(0)
LIKELIEST = Attributes("LongHairStraight", "SilverGrey", "Round", "ShirtScoopNeck", "White")
UNSEEN = LIKELIEST._replace(top_type="LongHairBun")


@pytest.fixture(scope="module")
def images() -> RGBImages:
    return render_many(sample(300, 0), 32)


def nearest(some: npt.NDArray[Any], others: npt.NDArray[Any]) -> list[float]:
    """Return the mean difference in grey levels of each image from the most similar of the others."""
    return [float(np.abs(one - others).mean(axis=(1, 2, 3)).min()) for one in some]


def neighbours_correlation(images: RGBImages) -> float:
    """Return the median correlation of a pixel with the one on its right, over pixels that vary."""
    centred = images - images.mean(axis=0)
    seed_table = centred.std(axis=0)
    left, right = centred[:, :, :-1], centred[:, :, 1:]
    vary = (seed_table[:, :-1] > 10) & (seed_table[:, 1:] > 10)
    together = (left * right).mean(axis=0)
    return float(np.median(together[vary] / (seed_table[:, :-1] * seed_table[:, 1:])[vary]))


@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_margins_are_those_of_the_table(seed: int) -> None:
    model = FeatureNaiveBayes.fit(observed_combinations(seed))
    for feature, table in zip(Attributes._fields, model.theta, strict=True):
        assert table.tolist() == pytest.approx([n / 50 for n in OBSERVED_COUNTS[feature].values()])


def test_the_probability_of_a_combination_is_the_product_over_its_features() -> None:
    model = FeatureNaiveBayes.fit(OBSERVED)
    rare = Attributes("NoHair", "Brown", "Sunglasses", "ShirtVNeck", "PastelOrange")
    assert model.probability(LIKELIEST) == pytest.approx(0.46 * 0.48 * 0.44 * 0.38 * 0.44)
    assert model.probability(rare) == pytest.approx(0.14 * 0.04 * 0.34 * 0.12 * 0.04)
    assert np.log(model.probability(rare)) == pytest.approx(sum(np.log([0.14, 0.04, 0.34, 0.12, 0.04])))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_probabilities_of_all_combinations_sum_to_one(alpha: float) -> None:
    model = FeatureNaiveBayes.fit(OBSERVED, alpha)
    assert sum(map(model.probability, every_combination())) == pytest.approx(1, abs=1e-12)


def test_an_unseen_value_is_impossible_without_smoothing_and_possible_with_it() -> None:
    plain, smooth = FeatureNaiveBayes.fit(OBSERVED), FeatureNaiveBayes.fit(OBSERVED, alpha=1)
    assert plain.probability(UNSEEN) == 0
    assert smooth.probability(UNSEEN) == pytest.approx((1 / 57) * (25 / 56) * (23 / 53) * (20 / 54) * (23 / 58))


def test_hidden_hair_says_nothing_about_hair_colours() -> None:
    combinations = [visible(combination) for combination in OBSERVED]
    model = FeatureNaiveBayes.fit(combinations)
    hair = Counter(combination.hair_color for combination in OBSERVED if combination.top_type != "NoHair")
    assert model.theta[1].tolist() == pytest.approx([hair[color] / 43 for color in OBSERVED_COUNTS["hair_color"]])
    assert model.probability(visible(LIKELIEST._replace(top_type="NoHair"))) == pytest.approx(
        0.14 * 0.44 * 0.38 * 0.44
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_new_combinations_differ_from_the_fifty_and_from_one_another(seed: int) -> None:
    observed = observed_combinations(seed)
    model = FeatureNaiveBayes.fit(observed)
    found = model.unobserved(10, observed, seed)
    new = {visible(combination) for combination, _ in found}
    assert len(found) == len(new) == 10
    assert not new & {visible(combination) for combination in observed}
    assert all(p == pytest.approx(model.probability(combination)) and p > 0 for combination, p in found)
    assert found == model.unobserved(10, observed, seed)


@pytest.mark.slow  # many draws
def test_the_first_new_combination_follows_the_distribution_of_new_combinations() -> None:
    model = FeatureNaiveBayes.fit(OBSERVED)
    drawn_first = [model.unobserved(1, OBSERVED, seed)[0][0].top_type == "LongHairStraight" for seed in range(100)]
    known = {visible(combination) for combination in OBSERVED}
    new = {combination: p for combination, p in image_probabilities().items() if combination not in known}
    share = sum(p for combination, p in new.items() if combination.top_type == "LongHairStraight") / sum(
        new.values()
    )
    assert np.mean(drawn_first) == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 100))


def test_new_combinations_have_unseen_values_only_with_smoothing() -> None:
    def test_images(alpha: float) -> bool:
        found = FeatureNaiveBayes.fit(OBSERVED, alpha).unobserved(200, OBSERVED, 0)
        return any(
            combination.top_type == "LongHairBun" or combination.clothing_color == "Black"
            for combination, _ in found
        )

    assert not test_images(0)
    assert test_images(1)


def test_more_new_combinations_than_are_possible_are_refused() -> None:
    only = FeatureNaiveBayes.fit([LIKELIEST, LIKELIEST._replace(hair_color="Red")])
    assert len(only.unobserved(1, [LIKELIEST], 0)) == 1
    with pytest.raises(InputError, match="found 1 unobserved combinations that are possible, expected at least 2"):
        only.unobserved(2, [LIKELIEST], 0)


def test_a_bald_combination_with_another_hair_colour_is_not_new() -> None:
    bald = LIKELIEST._replace(top_type="NoHair")
    red = bald._replace(hair_color="Red")
    with pytest.raises(InputError, match="found 0 unobserved combinations"):
        FeatureNaiveBayes.fit([bald, red]).unobserved(1, [bald], 0)


def test_pixels_are_counted_level_by_level_and_smoothed() -> None:
    images = np.array([0, 0, 255], dtype=np.uint8).reshape(3, 1, 1, 1)
    model = PixelNaiveBayes.fit(images, levels=2, alpha=0.5)
    assert model.theta.ravel().tolist() == pytest.approx([2.5 / 4, 1.5 / 4])
    assert model.log_likelihood(images).tolist() == pytest.approx(np.log([0.625, 0.625, 0.375]))
    assert model.entropy() == pytest.approx(-0.625 * np.log(0.625) - 0.375 * np.log(0.375))


def test_the_likelihood_of_an_image_is_the_product_over_its_pixels_and_channels() -> None:
    images = np.array([[0, 255, 0, 0], [255, 255, 0, 0]], dtype=np.uint8).reshape(2, 2, 1, 2)
    found = PixelNaiveBayes.fit(images, levels=2, alpha=0).log_likelihood(np.stack([images[0], 255 - images[0]]))
    assert found.tolist() == [pytest.approx(np.log(0.5)), -np.inf]


@pytest.mark.slow
def test_every_pixel_alone_is_drawn_as_it_is_seen(images: RGBImages) -> None:
    sampled_images = PixelNaiveBayes.fit(images).sample(2000, np.random.default_rng(0))
    apart = sampled_images.mean(axis=0) - images.mean(axis=0)
    noise = np.sqrt(images.var(axis=0) / 2000)
    assert sampled_images.shape == (2000, 32, 32, 3)
    assert (np.abs(apart) < 10 + 4.5 * noise).all()  # half a step between two of 16 grey levels is 8.5


@pytest.mark.slow
def test_a_sampled_image_is_no_avatar_though_each_of_its_pixels_is_one_of_an_avatar(images: RGBImages) -> None:
    coarse = np.rint(images / 17) * 17
    sampled_images = PixelNaiveBayes.fit(images, alpha=0).sample(50, np.random.default_rng(0))
    for one in sampled_images:
        assert (one == coarse).any(axis=0).all()
    held_out = np.rint(render_many(sample(50, 1), 32) / 17) * 17
    assert min(nearest(sampled_images, coarse)) > 10 * np.median(nearest(held_out, coarse))


def test_neighbouring_pixels_agree_in_avatars_and_not_in_samples(images: RGBImages) -> None:
    assert neighbours_correlation(images) > 0.9
    sampled = PixelNaiveBayes.fit(images).sample(300, np.random.default_rng(0))
    assert abs(neighbours_correlation(sampled)) < 0.05


def test_the_entropy_of_pixels_is_hundreds_of_times_that_of_attributes(images: RGBImages) -> None:
    assert entropy() == pytest.approx(6.6, abs=0.05)
    assert 1800 < PixelNaiveBayes.fit(images).entropy() < 2200


@pytest.mark.slow
def test_impossible_pixels_are_mostly_less_probable_than_avatars(images: RGBImages) -> None:
    model = PixelNaiveBayes.fit(images)
    inside = -model.log_likelihood(render_many(sample(60, 2), 32))
    for kind in ("eyepatch", "hat", "graphic shirt"):
        beyond = -model.log_likelihood(render_many(out_of_distribution_sample(30, 0, kinds=[kind]), 32))
        assert (beyond[:, None] > inside).mean() > 0.7, kind


def test_naive_bayes_of_features_learns_the_distribution() -> None:
    learnt = FeatureNaiveBayes.fit(OBSERVED, alpha=0.7).theta
    assert all(np.allclose(mine, true) for mine, true in zip(learnt, theta(0.7), strict=True))
