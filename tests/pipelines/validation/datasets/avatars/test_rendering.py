from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from anomaly.core.errors import InputError
from pipelines.validation.datasets.avatars.distribution import (
    HIDDEN,
    OBSERVED_COUNTS,
    Attributes,
    codes,
    every_combination,
    sample,
    visible,
)
from pipelines.validation.datasets.avatars.rendering import (
    BACKGROUND,
    HATS,
    LIBRARY_NAMES,
    OOD_KINDS,
    PRINTS,
    out_of_distribution_kind,
    out_of_distribution_sample,
    render,
    render_many,
)

EXAMPLE = Attributes("ShortHairShortFlat", "Red", "Round", "ShirtScoopNeck", "White")
# The second hides much of the clothes behind its hair, and its clothes have nearly the colour of its skin.
CONTEXTS = (EXAMPLE, Attributes("LongHairStraight", "PastelPink", "Blank", "ShirtScoopNeck", "PastelOrange"))


def rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def difference(first: Attributes, second: Attributes, size: int = 32) -> tuple[float, int]:
    """Return the mean and the largest difference in grey levels over pixels and channels."""
    apart = np.abs(render(first, size).astype(np.int64) - render(second, size))
    return float(apart.mean()), int(apart.max())


@pytest.mark.parametrize("size", [32, 64, 128])
def test_an_image_is_square_and_in_colour(size: int) -> None:
    image = render(EXAMPLE, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == image[size // 2, 0].tolist() == rgb(BACKGROUND)


def test_hair_and_clothes_have_the_colours_of_the_combination() -> None:
    image = render(EXAMPLE, 128)
    assert image[120, 64].tolist() == rgb("#FFFFFF")
    assert image[12, 64].tolist() == rgb("#C93305")


def test_a_combination_has_one_image() -> None:
    assert (render(EXAMPLE, 32) == render(EXAMPLE, 32)).all()


def test_python_avatars_knows_every_value_of_the_table() -> None:
    for feature, counts in OBSERVED_COUNTS.items():
        assert set(counts) <= set(LIBRARY_NAMES[feature])


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("feature", Attributes._fields)
def test_every_two_values_of_a_feature_differ_in_the_smallest_image(feature: str, context: Attributes) -> None:
    for first, second in itertools.combinations(OBSERVED_COUNTS[feature], 2):
        mean, largest = difference(context._replace(**{feature: first}), context._replace(**{feature: second}))
        assert mean > 0.25, (first, second)
        assert largest >= 25, (first, second)


def test_no_hair_has_no_colour_and_neither_has_hair_under_a_hat() -> None:
    for top in ("NoHair", *HATS):
        covered = EXAMPLE._replace(top_type=top)
        images = [render(covered._replace(hair_color=color), 64) for color in OBSERVED_COUNTS["hair_color"]]
        assert all((image == images[0]).all() for image in images)
        assert (render(covered._replace(hair_color=HIDDEN), 64) == images[0]).all()


@pytest.mark.slow
def test_two_combinations_have_the_same_image_exactly_where_they_show_the_same() -> None:
    shown = list({visible(combination): None for combination in every_combination()})
    images = render_many(shown, 32)
    coarse = np.rint(images / 17)  # 16 grey levels, those of naive Bayes over pixels
    assert len(np.unique(coarse.reshape(len(shown), -1), axis=0)) == len(shown) == 3552


def test_many_combinations_are_drawn_in_their_order_and_each_image_once() -> None:
    bald = EXAMPLE._replace(top_type="NoHair")
    combinations = [
        EXAMPLE,
        bald,
        EXAMPLE._replace(clothing_color="Pink"),
        EXAMPLE,
        bald._replace(hair_color="Black"),
    ]
    as_covariates: list[tuple[int, int]] = []
    images = render_many(combinations, 32, lambda done, total: as_covariates.append((done, total)))
    assert as_covariates == [(1, 3), (2, 3), (3, 3)]
    assert images.shape == (5, 32, 32, 3)
    assert all(
        (image == render(combination, 32)).all() for image, combination in zip(images, combinations, strict=True)
    )
    assert render_many([], 32).shape == (0, 32, 32, 3)


def test_out_of_distribution_combinations_have_one_new_value_and_all_others_from_the_distribution() -> None:
    combinations = out_of_distribution_sample(30, seed=5)
    assert Counter(map(out_of_distribution_kind, combinations)) == dict.fromkeys(OOD_KINDS, 10)
    for combination in combinations:
        feature, _ = OOD_KINDS[str(out_of_distribution_kind(combination))]
        inside = combination._replace(**{feature: next(iter(OBSERVED_COUNTS[feature]))})
        assert codes([inside]).min() >= 0
        with pytest.raises(InputError, match=f"unknown {feature}"):
            codes([combination])


def test_combinations_of_one_kind_are_seeded_and_vary() -> None:
    hats = out_of_distribution_sample(40, seed=1, kinds=["hat"])
    assert hats == out_of_distribution_sample(40, seed=1, kinds=["hat"])
    assert hats != out_of_distribution_sample(40, seed=2, kinds=["hat"])
    assert {combination.top_type for combination in hats} == set(HATS)


def test_combinations_from_the_distribution_are_of_no_kind_outside_it() -> None:
    assert {out_of_distribution_kind(combination) for combination in sample(200, 0, alpha=1)} == {None}


@pytest.mark.parametrize("kind", OOD_KINDS)
def test_a_new_value_is_visible_in_the_smallest_image_beside_every_value_of_the_distribution(kind: str) -> None:
    feature, values = OOD_KINDS[kind]
    for new, known in itertools.product(values, OBSERVED_COUNTS[feature]):
        mean, largest = difference(EXAMPLE._replace(**{feature: new}), EXAMPLE._replace(**{feature: known}))
        assert mean > 0.25, (new, known)
        assert largest >= 50, (new, known)


@pytest.mark.parametrize("color", OBSERVED_COUNTS["clothing_color"])
def test_a_print_is_seen_on_clothes_of_every_colour(color: str) -> None:
    plain = render(EXAMPLE._replace(clothing_color=color), 64).astype(np.int64)
    for name in PRINTS:
        printed = render(EXAMPLE._replace(clothing_type=name, clothing_color=color), 64)
        chest = np.abs(printed - plain)[50:, 20:44]
        assert chest.max() > 60, (name, color)
        assert (chest.max(axis=-1) > 30).sum() >= 10, (name, color)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown top_type 'Fez'; valid: .*WinterHat1"):
        render(EXAMPLE._replace(top_type="Fez"), 32)
    with pytest.raises(InputError, match="valid: eyepatch, graphic shirt, hat"):
        out_of_distribution_sample(3, seed=0, kinds=["monocle"])
