"""The avatar dataset: fifty observed avatars, the attribute distribution they give, and images drawn from it.

Models are trained on more than fifty images, all drawn from the distribution that the sample of fifty estimates.
The reference classifier, which labels samples, is trained on a smoothed distribution (α = 1) instead, so that it
knows the two values that none of the fifty has, and learns of no value that it is rare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomaly.core.volume import FloatArray
from pipelines.validation.datasets.avatars import distribution
from pipelines.validation.datasets.avatars.distribution import VALUES, Attributes
from pipelines.validation.datasets.avatars.image_bank import ImageBank, hide_invisible
from pipelines.validation.datasets.avatars.mosaic import mosaic, to_rgb
from pipelines.validation.datasets.avatars.rendering import (
    OOD_KINDS,
    out_of_distribution_kind,
    out_of_distribution_sample,
    render_many,
)
from pipelines.validation.datasets.avatars.settings import AvatarSettings
from pipelines.validation.labelled_dataset import LabelledImages, Labels

ATTRIBUTE_VALUES = dict(zip(Attributes._fields, VALUES, strict=True))
CLASSIFIER_ALPHA = 1.0  # smoothing α of the images that the classifier is trained on
SEEDED_PARTS = (
    "observed",
    "train",
    "test",
    "classifier",
    "classifier test",
    "held out",
    "calibration",
    "conditions",
    "out of distribution",
)
"""Parts of the dataset; the seed of each is made from its position."""


@dataclass(frozen=True, eq=False)
class Avatars:
    """The avatar dataset: draws images of any part.

    Parameters
    ----------
    settings
        Numbers and size of the images.
    image_bank
        The image of every combination of attributes.
    """

    settings: AvatarSettings
    image_bank: ImageBank

    @property
    def observed(self) -> list[Attributes]:
        """The fifty observed avatars."""
        return distribution.observed_combinations(self._seed("observed"))

    def images(self, part: str, n: int, alpha: float = 0.0) -> LabelledImages:
        """Return ``n`` images of one of the parts, drawn from the distribution with the part's own seed."""
        rows = self.codes(part, n, alpha)
        return LabelledImages(self.image_bank.mosaics(rows), rows)

    def codes(self, part: str, n: int, alpha: float = 0.0) -> Labels:
        """Return the codes ``(n, 5)`` of :meth:`images`, without the images."""
        return hide_invisible(distribution.codes(distribution.sample(n, self._seed(part), alpha)))

    def out_of_distribution_images(self, n: int) -> tuple[FloatArray, npt.NDArray[np.str_]]:
        """Return out-of-distribution images ``(n, 2H, 2W)``, and the kind of each."""
        combinations = out_of_distribution_sample(n, self._seed("out of distribution"), tuple(OOD_KINDS))
        kinds = np.array([out_of_distribution_kind(one) for one in combinations], dtype=np.str_)
        return mosaic(render_many(combinations, self.settings.size)), kinds

    def _seed(self, part: str) -> int:
        return int(np.random.SeedSequence([self.settings.seed, SEEDED_PARTS.index(part)]).generate_state(1)[0])


def in_colour(pixels: FloatArray) -> FloatArray:
    """Return mosaics ``(N, 2H, 2W)`` as colour images ``(N, H, W, 3)``, 0 to 1."""
    return (to_rgb(pixels) / 255).astype(np.float32)
