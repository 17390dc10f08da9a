from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from anomaly.core.errors import InputError
from pipelines.validation.datasets.avatars.distribution import (
    HIDDEN,
    N_OBSERVED,
    OBSERVED_COUNTS,
    VALUES,
    Attributes,
    codes,
    combinations_of,
    compare,
    entropy,
    every_combination,
    image_probabilities,
    observed_combinations,
    probabilities,
    sample,
    smoothed,
    theta,
    visible,
)

LIKELIEST = Attributes("LongHairStraight", "SilverGrey", "Round", "ShirtScoopNeck", "White")
BALD = LIKELIEST._replace(top_type="NoHair")
LEVEL = 0.05


def test_every_feature_was_counted_in_all_fifty_combinations() -> None:
    assert tuple(OBSERVED_COUNTS) == Attributes._fields
    assert {feature: sum(counts.values()) for feature, counts in OBSERVED_COUNTS.items()} == dict.fromkeys(
        OBSERVED_COUNTS, N_OBSERVED
    )


@pytest.mark.parametrize("seed", range(8))
def test_observed_combinations_have_exactly_the_margins_of_the_table(seed: int) -> None:
    combinations = observed_combinations(seed)
    assert len(combinations) == 50
    for feature, counts in OBSERVED_COUNTS.items():
        found = Counter(getattr(combination, feature) for combination in combinations)
        assert found == {value: n for value, n in counts.items() if n}


def test_a_seed_repeats_the_combinations_and_another_one_does_not() -> None:
    assert observed_combinations(3) == observed_combinations(3)
    assert observed_combinations(3) != observed_combinations(4)
    assert sample(20, 3) == sample(20, 3)
    assert sample(20, 3) != sample(20, 4)


def test_features_of_observed_combinations_do_not_depend_on_one_another() -> None:
    both = [
        sum(
            combination.top_type == "LongHairStraight" and combination.clothing_color == "White"
            for combination in observed_combinations(seed)
        )
        for seed in range(200)
    ]
    assert np.mean(both) == pytest.approx(50 * 0.46 * 0.44, abs=0.4)


def test_there_are_4032_combinations_and_3552_images() -> None:
    combinations = every_combination()
    assert len(set(combinations)) == len(combinations) == 7 * 6 * 3 * 4 * 8 == 4032
    assert len({visible(combination) for combination in combinations}) == len(image_probabilities()) == 3552


def test_the_probabilities_of_an_attribute_are_its_shares_of_the_fifty() -> None:
    for feature, table in zip(Attributes._fields, theta(), strict=True):
        assert table.tolist() == pytest.approx([n / 50 for n in OBSERVED_COUNTS[feature].values()])


def test_smoothing_gives_unseen_values_a_probability() -> None:
    assert theta(alpha=1)[0].tolist() == pytest.approx([n / 57 for n in (8, 1, 2, 24, 2, 12, 8)])
    assert min(table.min() for table in theta(alpha=0.1)) > 0
    assert theta()[0][1] == theta()[4][0] == 0


@pytest.mark.parametrize(("counts", "alpha"), [([3, 1], -0.5), ([0, 0], 0)])
def test_missing_or_negative_counts_are_refused(counts: list[int], alpha: float) -> None:
    with pytest.raises(ValueError, match="smoothing"):
        smoothed(counts, alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_probabilities_of_all_combinations_and_of_all_images_sum_to_one(alpha: float) -> None:
    assert probabilities(every_combination(), theta(alpha)).sum() == pytest.approx(1, abs=1e-12)
    assert sum(image_probabilities(alpha).values()) == pytest.approx(1, abs=1e-12)


def test_the_probability_of_a_combination_is_the_product_over_its_features() -> None:
    assert probabilities([LIKELIEST], theta())[0] == pytest.approx(0.46 * 0.48 * 0.44 * 0.38 * 0.44)


def test_a_bald_image_is_as_probable_as_all_its_hair_colours_together() -> None:
    expected = 0.14 * 0.44 * 0.38 * 0.44
    assert visible(BALD) == visible(BALD._replace(hair_color="Red")) == BALD._replace(hair_color=HIDDEN)
    assert image_probabilities()[visible(BALD)] == pytest.approx(expected)
    assert sum(probabilities([BALD._replace(hair_color=c) for c in VALUES[1]], theta())) == pytest.approx(expected)


def test_hair_shows_its_colour_and_a_hat_hides_it() -> None:
    assert visible(LIKELIEST) == LIKELIEST
    assert visible(LIKELIEST._replace(top_type="WinterHat1")).hair_color == HIDDEN


def test_codes_are_places_in_the_table_and_lead_back() -> None:
    combinations = [LIKELIEST, visible(BALD), *sample(30, 0)]
    assert codes(combinations[:2]).tolist() == [[3, 5, 1, 2, 7], [0, -1, 1, 2, 7]]
    assert combinations_of(codes(combinations)) == combinations
    assert codes([]).shape == (0, 5)


def test_a_value_that_the_table_does_not_know_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown accessories_type 'Eyepatch'; valid: Blank, Round, Sunglasses"):
        codes([LIKELIEST._replace(accessories_type="Eyepatch")])


def test_unseen_values_are_drawn_only_with_smoothing() -> None:
    assert not any(combination.clothing_color == "Black" for combination in sample(2000, 0))
    black = np.mean([combination.clothing_color == "Black" for combination in sample(2000, 0, alpha=1)])
    assert black == pytest.approx(1 / 58, abs=0.01)


def test_the_entropy_of_images_lies_below_that_of_combinations_by_the_hidden_hair_colours() -> None:
    per_feature = [-sum(p * np.log(p) for p in table if p > 0) for table in theta()]
    assert entropy() == pytest.approx(sum(per_feature) - 0.14 * per_feature[1])


@pytest.mark.slow  # many draws
def test_samples_of_the_distribution_are_accepted_as_often_as_the_level_says() -> None:
    observed = observed_combinations(0)
    rejected = [compare(sample(200, seed), observed, seed).margins.p_value <= LEVEL for seed in range(40)]
    assert np.mean(rejected) < LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / 40)


@pytest.mark.slow
def test_samples_of_a_changed_distribution_are_rejected() -> None:
    # One in five long straight hairstyles becomes short: 0.46 → 0.37 of 500 avatars.
    def cut(combination: Attributes, i: int) -> Attributes:
        return (
            combination._replace(top_type="ShortHairShortFlat")
            if i % 5 == 0 and "Straight" in combination.top_type
            else combination
        )

    rejected = []
    for seed in range(20):
        tilted = [cut(combination, i) for i, combination in enumerate(sample(500, seed))]
        rejected.append(compare(tilted, observed_combinations(0), seed).margins.p_value <= LEVEL)
    assert np.mean(rejected) >= 0.9


def test_an_unseen_value_is_impossible_under_the_distribution_and_possible_under_the_smoothed_one() -> None:
    combinations = [*sample(400, 0, alpha=1), LIKELIEST._replace(clothing_color="Black")]
    assert compare(combinations, [], 0).margins.impossible > 0
    assert compare(combinations, [], 0, alpha=1).margins.impossible == 0
    assert compare(combinations, [], 0, alpha=1).margins.p_value > LEVEL


def test_samples_are_as_novel_and_as_diverse_as_the_distribution_expects() -> None:
    found = compare(sample(3000, 1), observed_combinations(0), 0)
    assert found.novel == pytest.approx(found.expected_novel, abs=0.03)
    assert found.distinct == pytest.approx(found.expected_distinct, abs=0.03)
    assert found.differing == pytest.approx(found.expected_differing, abs=0.05)
    assert found.expected_differing == pytest.approx(5 - 0.3 - 0.2952 - 0.3576 - 0.308 - 0.2616)


def test_copies_of_observed_avatars_are_not_novel_and_one_avatar_repeated_is_not_diverse() -> None:
    observed = observed_combinations(0)
    assert compare(observed, observed, 0).novel == 0
    same = compare([LIKELIEST] * 50, observed, 0)
    assert (same.distinct, same.differing) == (1 / 50, 0)
    assert same.margins.p_value < 0.001


def test_another_hidden_hair_colour_makes_no_combination_novel() -> None:
    assert compare([BALD], [BALD._replace(hair_color="Red")], 0).novel == 0


def test_values_of_every_feature_are_those_of_the_table() -> None:
    assert [len(values) for values in VALUES] == [7, 6, 3, 4, 8]
