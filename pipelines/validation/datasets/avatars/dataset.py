"""The world of avatars: fifty observed looks, the law that they suggest, and pictures of looks drawn from it.

Models learn from more looks than fifty, all drawn from the law, which is what a sample of fifty stands for. The
classifier, which says what generated pictures show, learns from looks of a smoothed law (α = 1) instead, so that it
knows the two values that none of the fifty has, and is told of no value that it is rare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.core.volume import FloatArray
from pipelines.validation.datasets.avatars import distribution as law
from pipelines.validation.datasets.avatars.distribution import VALUES, Look
from pipelines.validation.datasets.avatars.image_bank import Album, hidden
from pipelines.validation.datasets.avatars.mosaic import colours, mosaic
from pipelines.validation.datasets.avatars.rendering import OUTSIDE, kind_outside, outside, render_many
from pipelines.validation.datasets.avatars.settings import AvatarSettings
from pipelines.validation.labelled_dataset import Labels, Pictures

FEATURES = dict(zip(Look._fields, VALUES, strict=True))
SMOOTHED = 1.0  # α of the looks that the classifier learns from
PARTS = (
    "observed",
    "train",
    "test",
    "classifier",
    "classifier test",
    "held out",
    "calibration",
    "requests",
    "outside",
)


@dataclass(frozen=True, eq=False)
class Avatars:
    """What is known of this world beside pictures to learn from.

    Parameters
    ----------
    settings
        How many looks, and how large.
    album
        The picture of every look.
    """

    settings: AvatarSettings
    album: Album

    @property
    def observed(self) -> list[Look]:
        """The fifty looks."""
        return law.observed_looks(self._seed("observed"))

    def looks(self, part: str, n: int, alpha: float = 0.0) -> Pictures:
        """Return ``n`` looks of one of the parts, which are drawn from the law with a seed of their own."""
        rows = self.codes(part, n, alpha)
        return Pictures(self.album.of(rows), rows)

    def codes(self, part: str, n: int, alpha: float = 0.0) -> Labels:
        """Return what :meth:`looks` show, codes ``(n, 5)``, without the pictures."""
        return hidden(law.codes(law.drawn(n, self._seed(part), alpha)))

    def strangers(self, n: int) -> tuple[FloatArray, npt.NDArray[np.str_]]:
        """Return the pictures ``(n, 2H, 2W)`` of looks from outside the law, and of which kind each is."""
        looks = outside(n, self._seed("outside"), tuple(OUTSIDE))
        kinds = np.array([kind_outside(look) for look in looks], dtype=np.str_)
        return mosaic(render_many(looks, self.settings.size)), kinds

    def _seed(self, part: str) -> int:
        return int(np.random.SeedSequence([self.settings.seed, PARTS.index(part)]).generate_state(1)[0])


def in_colour(pixels: FloatArray) -> FloatArray:
    """Return mosaics ``(N, 2H, 2W)`` as people look at them, ``(N, H, W, 3)``, 0 to 1."""
    return (colours(pixels) / 255).astype(np.float32)
