"""Fifty observed looks, of which only the counts of each feature's values are known, and the law they suggest.

Which hair goes with which clothes is not known, so the columns are taken as independent. Of all laws that have
these margins that one has the largest entropy: it adds nothing that the counts do not say.

    θ_fv       = (n_fv + α) / (50 + α K_f)            α = 0: the maximum likelihood, n_fv / 50
    P(look)    = Π_f θ_f,v(f)                         over 7 × 6 × 3 × 4 × 8 = 4,032 looks
    P(picture) = Σ P(look)                            over looks that look the same: no hair, no colour

There are (7 − 1) × 6 × 3 × 4 × 8 + 3 × 4 × 8 = 3,552 pictures. Whatever is counted in pictures (novel, distinct) is
counted by what is :func:`visible`.
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
"""The value of a feature that a picture does not show."""


class Look(NamedTuple):
    """One value of each feature."""

    top_type: str
    hair_color: str
    accessories_type: str
    clothing_type: str
    clothing_color: str


TABLE: Mapping[str, Mapping[str, int]] = MappingProxyType(
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
"""Feature → value → how many of the observed looks have it."""

N_OBSERVED = 50
VALUES: tuple[tuple[str, ...], ...] = tuple(tuple(TABLE[feature]) for feature in Look._fields)
HAIR = frozenset(VALUES[0]) - {"NoHair"}


@dataclass(frozen=True)
class Comparison:
    """How a set of looks compares with as many drawn from the law.

    Parameters
    ----------
    margins
        The chi-square test of each feature, in the order of ``Look``; hidden values are left out.
    novel, expected_novel
        Share of the looks whose picture is none of the observed ones'.
    distinct, expected_distinct
        Different pictures, as a share of the looks.
    differing, expected_differing
        Mean number of features, of 5, in which two looks differ.
    """

    margins: MarginFit
    novel: float
    expected_novel: float
    distinct: float
    expected_distinct: float
    differing: float
    expected_differing: float


def every_look() -> list[Look]:
    """Return all 4,032 looks, the last feature varying fastest."""
    return [Look(*values) for values in itertools.product(*VALUES)]


def visible(look: Look) -> Look:
    """Return what a picture shows of a look: hair colour is hidden where there is no hair, or a hat over it.

    Two looks have the same picture exactly where this is the same.
    """
    return look if look.top_type in HAIR else look._replace(hair_color=HIDDEN)


def codes(looks: Iterable[Look]) -> Codes:
    """Return ``(N, 5)`` positions of the values in the table; −1 where hidden.

    Raises
    ------
    InputError
        A value is not in the table; names the valid ones.
    """
    return np.array([[_code(f, value) for f, value in enumerate(look)] for look in looks], np.int64).reshape(-1, 5)


def looks_of(rows: npt.ArrayLike) -> list[Look]:
    """Return the looks of codes ``(N, 5)``; −1 becomes hidden."""
    return [
        Look(*(HIDDEN if code == UNKNOWN else VALUES[f][code] for f, code in enumerate(row)))
        for row in np.asarray(rows, dtype=np.int64).tolist()
    ]


def theta(alpha: float = 0.0) -> tuple[Floats, ...]:
    """Return the probabilities of each feature's values, five arrays ``(K_f,)``."""
    return tuple(smoothed(list(TABLE[feature].values()), alpha) for feature in Look._fields)


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


def observed_looks(seed: int) -> list[Look]:
    """Return 50 looks whose margins are exactly the table's.

    Each column is its 50 values, shuffled on its own: only margins are known, and any other way to put the columns
    together would add a dependence that nobody has seen. Two of the looks may be the same.
    """
    rng = np.random.default_rng(seed)
    columns = [
        rng.permutation(np.repeat(VALUES[f], list(TABLE[name].values()))) for f, name in enumerate(Look._fields)
    ]
    return [Look(*map(str, row)) for row in zip(*columns, strict=True)]


def drawn(n: int, seed: int, alpha: float = 0.0) -> list[Look]:
    """Return ``n`` looks drawn from the law, each feature on its own; with α > 0 also values never observed."""
    rng = np.random.default_rng(seed)
    return looks_of(np.stack([rng.choice(len(p), size=n, p=p) for p in theta(alpha)], axis=1))


def probabilities(looks: Iterable[Look], tables: Sequence[Floats]) -> Floats:
    """Return Π θ of each look ``(N,)``, with ``tables`` as of :func:`theta`; of a hidden value, the sum."""
    rows = codes(looks)
    factors = [np.where(rows[:, f] == UNKNOWN, 1.0, table[rows[:, f]]) for f, table in enumerate(tables)]
    return np.asarray(np.prod(factors, axis=0))


def picture_probabilities(alpha: float = 0.0) -> dict[Look, float]:
    """Return the probability of each of the 3,552 pictures by what it shows."""
    shown = list(dict.fromkeys(map(visible, every_look())))
    return dict(zip(shown, probabilities(shown, theta(alpha)).tolist(), strict=True))


def entropy(alpha: float = 0.0) -> float:
    """Return the nats that one picture takes to tell, H = −Σ P ln P over pictures: no model of them needs fewer."""
    p = np.array([value for value in picture_probabilities(alpha).values() if value > 0])
    return float(-(p * np.log(p)).sum())


def compare(looks: Sequence[Look], observed: Iterable[Look], seed: int, alpha: float = 0.0) -> Comparison:
    """Hold looks, at least one, against the law.

    With α = 0 a value that was never observed is impossible: it is counted in ``margins.impossible`` and left out
    of the tests. With α > 0 the law is the smoothed one, under which everything is possible.

    Parameters
    ----------
    looks
        Drawn, or read from generated pictures; hidden values are left out feature by feature.
    observed
        The looks that were there before, against which a look is novel.
    """
    law, pictures = theta(alpha), picture_probabilities(alpha)
    shown, before = [visible(look) for look in looks], {visible(look) for look in observed}
    rows = codes(shown)
    counts = categorical.column_counts(rows, [len(values) for values in VALUES])
    return Comparison(
        margins=categorical.margin_fit(rows, law, seed),
        novel=sum(look not in before for look in shown) / len(shown),
        expected_novel=1 - sum(pictures[look] for look in before),
        distinct=categorical.distinct_share(shown),
        expected_distinct=categorical.expected_distinct_share(list(pictures.values()), len(shown)),
        differing=categorical.differing_columns(counts),
        expected_differing=categorical.expected_differing_columns(law),
    )


def _code(feature: int, value: str) -> int:
    if value == HIDDEN:
        return UNKNOWN
    if value not in VALUES[feature]:
        raise InputError(unknown_name(Look._fields[feature], value, [*VALUES[feature], HIDDEN]))
    return VALUES[feature].index(value)
