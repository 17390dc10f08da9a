"""The attribute distribution of avatars, estimated from the counts of each attribute's values in fifty avatars.

Which hair goes with which clothes is not known, so the attributes are taken as independent. Of all distributions
with these margins, this one has the largest entropy: it adds no information to the counts.

    θ_fv       = (n_fv + α) / (50 + α K_f)            α = 0: the maximum likelihood, n_fv / 50
    P(a)       = Π_f θ_f,v(f)                         over 7 × 6 × 3 × 4 × 8 = 4,032 combinations a
    P(image)   = Σ P(a)                               over combinations with the same image: no hair, no hair colour

There are (7 − 1) × 6 × 3 × 4 × 8 + 3 × 4 × 8 = 3,552 images. Novel and distinct avatars are counted by their image,
that is by the :func:`visible` attributes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anomaly.core.errors import InputError, unknown_name
from anomaly.evaluation import categorical
from anomaly.evaluation.categorical import UNKNOWN, Codes, Floats, MarginFit

HIDDEN = "hidden"
"""The value of an attribute that an image does not show."""


class Attributes(NamedTuple):
    """A combination of attributes: one value of each."""

    top_type: str
    hair_color: str
    accessories_type: str
    clothing_type: str
    clothing_color: str


OBSERVED_COUNTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "top_type": {
            "NoHair": 7,
            "LongHairBun": 0,
            "LongHairCurly": 1,
            "LongHairStraight": 23,
            "ShortHairShortWaved": 1,
            "ShortHairShortFlat": 11,
            "ShortHairFrizzle": 7,
        },
        "hair_color": {"Black": 7, "Blonde": 6, "Brown": 2, "PastelPink": 3, "Red": 8, "SilverGrey": 24},
        "accessories_type": {"Blank": 11, "Round": 22, "Sunglasses": 17},
        "clothing_type": {"Hoodie": 7, "Overall": 18, "ShirtScoopNeck": 19, "ShirtVNeck": 6},
        "clothing_color": {
            "Black": 0,
            "Blue01": 4,
            "Grey01": 10,
            "PastelGreen": 5,
            "PastelOrange": 2,
            "Pink": 4,
            "Red": 3,
            "White": 22,
        },
    }
)
"""Attribute → value → number of observed avatars with it."""

N_OBSERVED = 50
VALUES: tuple[tuple[str, ...], ...] = tuple(tuple(OBSERVED_COUNTS[feature]) for feature in Attributes._fields)
HAIR = frozenset(VALUES[0]) - {"NoHair"}


@dataclass(frozen=True)
class Comparison:
    """A set of avatars, compared with as many drawn from the distribution.

    Parameters
    ----------
    margins
        The chi-square test of each attribute, in the order of ``Attributes``; hidden values are left out.
    novel, expected_novel
        Share of the avatars whose image equals that of no observed one.
    distinct, expected_distinct
        Number of different images, as a share of the avatars.
    differing, expected_differing
        Mean number of attributes, of 5, in which two avatars differ.
    """

    margins: MarginFit
    novel: float
    expected_novel: float
    distinct: float
    expected_distinct: float
    differing: float
    expected_differing: float


def every_combination() -> list[Attributes]:
    """Return all 4,032 combinations, the last attribute varying fastest."""
    return [Attributes(*values) for values in itertools.product(*VALUES)]


def visible(combination: Attributes) -> Attributes:
    """Return the attributes that an image shows: hair colour is hidden without hair, or under a hat.

    Two combinations have the same image if and only if this is the same.
    """
    return combination if combination.top_type in HAIR else combination._replace(hair_color=HIDDEN)


def codes(combinations: Iterable[Attributes]) -> Codes:
    """Return ``(N, 5)`` codes: positions of the values in the table; −1 where hidden.

    Raises
    ------
    InputError
        A value is not in the table; names the valid ones.
    """
    return np.array(
        [[_code(f, value) for f, value in enumerate(combination)] for combination in combinations], np.int64
    ).reshape(-1, 5)


def combinations_of(rows: npt.ArrayLike) -> list[Attributes]:
    """Return the combinations with codes ``(N, 5)``; −1 becomes hidden."""
    return [
        Attributes(*(HIDDEN if code == UNKNOWN else VALUES[f][code] for f, code in enumerate(row)))
        for row in np.asarray(rows, dtype=np.int64).tolist()
    ]


def theta(alpha: float = 0.0) -> tuple[Floats, ...]:
    """Return the probabilities of each attribute's values, five arrays ``(K_f,)``."""
    return tuple(smoothed(list(OBSERVED_COUNTS[feature].values()), alpha) for feature in Attributes._fields)


def smoothed(counts: npt.ArrayLike, alpha: float) -> Floats:
    """Return (n + α) / (Σ n + α K) of counts ``(K,)``.

    Raises
    ------
    ValueError
        α is negative, or 0 where there are no counts.
    """
    raised = np.asarray(counts, dtype=np.float64) + alpha
    if alpha < 0 or raised.sum() == 0:
        raise ValueError(
            f"found smoothing {alpha} of counts with the sum {np.sum(counts)}; expected 0 or more, and "
            "above 0 where there are no counts"
        )
    return np.asarray(raised / raised.sum())


def observed_combinations(seed: int) -> list[Attributes]:
    """Return 50 combinations whose margins are exactly the table's.

    Each attribute's 50 values are shuffled independently, because only the margins are known. Two of the
    combinations may be equal.
    """
    rng = np.random.default_rng(seed)
    columns = [
        rng.permutation(np.repeat(VALUES[f], list(OBSERVED_COUNTS[name].values())))
        for f, name in enumerate(Attributes._fields)
    ]
    return [Attributes(*map(str, row)) for row in zip(*columns, strict=True)]


def sample(n: int, seed: int, alpha: float = 0.0) -> list[Attributes]:
    """Draw ``n`` combinations, each attribute independently; with α > 0 also values that were never observed."""
    rng = np.random.default_rng(seed)
    return combinations_of(np.stack([rng.choice(len(p), size=n, p=p) for p in theta(alpha)], axis=1))


def probabilities(combinations: Iterable[Attributes], tables: Sequence[Floats]) -> Floats:
    """Return Π θ of each combination ``(N,)``, with ``tables`` as from :func:`theta`.

    The factor of a hidden value is 1.
    """
    rows = codes(combinations)
    factors = [np.where(rows[:, f] == UNKNOWN, 1.0, table[rows[:, f]]) for f, table in enumerate(tables)]
    return np.asarray(np.prod(factors, axis=0))


def image_probabilities(alpha: float = 0.0) -> dict[Attributes, float]:
    """Return the probability of each of the 3,552 images, by the visible attributes."""
    shown = list(dict.fromkeys(map(visible, every_combination())))
    return dict(zip(shown, probabilities(shown, theta(alpha)).tolist(), strict=True))


def entropy(alpha: float = 0.0) -> float:
    """Return the entropy of an image in nats, H = −Σ P ln P: no model has a lower expected −ln P."""
    p = np.array([value for value in image_probabilities(alpha).values() if value > 0])
    return float(-(p * np.log(p)).sum())


def compare(
    combinations: Sequence[Attributes], observed: Iterable[Attributes], seed: int, alpha: float = 0.0
) -> Comparison:
    """Compare avatars, at least one, with the distribution.

    With α = 0 a value that was never observed is impossible: it is counted in ``margins.impossible`` and left out
    of the tests. With α > 0 the distribution is smoothed, and every value is possible.

    Parameters
    ----------
    combinations
        Attributes that were drawn, or read from generated images; hidden values are left out, each on its own.
    observed
        Avatars that are known: others are novel.
    """
    tables, probability = theta(alpha), image_probabilities(alpha)
    shown, known = (
        [visible(combination) for combination in combinations],
        {visible(combination) for combination in observed},
    )
    rows = codes(shown)
    counts = categorical.column_counts(rows, [len(values) for values in VALUES])
    return Comparison(
        margins=categorical.margin_fit(rows, tables, seed),
        novel=sum(combination not in known for combination in shown) / len(shown),
        expected_novel=1 - sum(probability[combination] for combination in known),
        distinct=categorical.distinct_share(shown),
        expected_distinct=categorical.expected_distinct_share(list(probability.values()), len(shown)),
        differing=categorical.differing_columns(counts),
        expected_differing=categorical.expected_differing_columns(tables),
    )


def _code(feature: int, value: str) -> int:
    if value == HIDDEN:
        return UNKNOWN
    if value not in VALUES[feature]:
        raise InputError(unknown_name(Attributes._fields[feature], value, [*VALUES[feature], HIDDEN]))
    return VALUES[feature].index(value)
