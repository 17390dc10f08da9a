"""Labelled images in the form of scans: volumes of one slice, which models, training and scoring take unchanged.

An image ``(H, W)`` becomes a volume ``(H, W, 1)`` on a grid of 1 mm whose foreground is the whole slice. The labels
of an image, such as the digit it shows, take the place of a subject's age and sex.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from anomaly.core.volume import FloatArray, Geometry, MaskArray

BATCH_SIZE = 256  # images per forward pass
NOT_VISIBLE = -1  # label of an attribute that an image does not show

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their labels; a source of volumes for training.

    Parameters
    ----------
    pixels
        float32 ``(N, H, W)``, 0 to 1.
    labels
        ``(N, F)`` F attributes of each image, as whole numbers from 0, e.g. its digit; −1 where it is not visible.
    binarisations
        0, or the number of random black-and-white versions of each image. The grey level is the probability of
        white (the usual binary MNIST; Salakhutdinov & Murray 2008).
    """

    pixels: FloatArray
    labels: Labels
    binarisations: int = 0

    def __len__(self) -> int:
        return len(self.pixels) * max(1, self.binarisations)

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        """Return one image as a volume ``(H, W, 1)`` and its mask."""
        version, position = divmod(index, len(self.pixels))
        image = self.pixels[position]
        if self.binarisations:
            image = (np.random.default_rng([version, position]).random(image.shape) < image).astype(np.float32)
        return image[..., None], np.ones((*image.shape, 1), dtype=bool)

    def covariates(self, index: int) -> FloatArray:
        """Return the labels of one image ``(F,)`` as covariates; NaN where not visible."""
        return as_covariates(self.labels[index % len(self.pixels)])

    @property
    def grid(self) -> Geometry:
        """The grid of the volumes."""
        return Geometry((*self.pixels.shape[1:], 1), np.eye(4))

    def select(self, chosen: npt.NDArray[np.generic] | slice) -> LabelledImages:
        """Return some of the images, chosen by index or by a bool for each."""
        return LabelledImages(self.pixels[chosen], self.labels[chosen], self.binarisations)

    def model_inputs(self) -> FloatArray:
        """Return the images ``(N, H, W)`` as a model gets them: binarised once each, if they are binarised."""
        if not self.binarisations:
            return self.pixels
        return np.stack([self[index][0][..., 0] for index in range(len(self.pixels))])


def as_covariates(labels: Labels) -> FloatArray:
    """Return labels as the covariates of a conditional model: float32, NaN where not visible."""
    return np.where(labels == NOT_VISIBLE, np.nan, labels).astype(np.float32)


def batches(pixels: FloatArray) -> Iterator[torch.Tensor]:
    """Yield images ``(N, H, W)`` in batches ``(B, 1, H, W)``."""
    for start in range(0, len(pixels), BATCH_SIZE):
        yield torch.from_numpy(np.ascontiguousarray(pixels[start : start + BATCH_SIZE], dtype=np.float32))[:, None]
