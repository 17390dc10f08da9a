"""Small pictures as scans: volumes of one slice, which models, training and scoring take as they are.

A picture ``(H, W)`` becomes a volume ``(H, W, 1)`` on a grid of 1 mm, all of it foreground. What is known of it,
such as the digit it shows, takes the place that age and sex have beside a scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from anomaly.core.image_views import Array
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.models.base import Detector
from anomaly.scoring.maps import RawEvidence
from anomaly.scoring.scorer import Inference, ScoredVolume, Scorer

AT_ONCE = 256  # pictures per forward pass
NOT_SHOWN = -1  # label of what a picture does not show

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and what they show.

    Parameters
    ----------
    pixels
        float32 ``(N, H, W)``, 0 to 1.
    labels
        ``(N, F)`` F features of each, as whole numbers from 0, e.g. its digit; −1 for what it does not show.
    draws
        0, or how often each picture is seen as another random draw of black and white pixels, where grey level is
        the probability of white (the usual binary MNIST; Salakhutdinov & Murray 2008).
    """

    pixels: FloatArray
    labels: Labels
    draws: int = 0

    def __len__(self) -> int:
        return len(self.pixels) * max(1, self.draws)

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        """Return one picture as a volume ``(H, W, 1)`` and its mask."""
        draw, place = divmod(index, len(self.pixels))
        picture = self.pixels[place]
        if self.draws:
            picture = (np.random.default_rng([draw, place]).random(picture.shape) < picture).astype(np.float32)
        return picture[..., None], np.ones((*picture.shape, 1), dtype=bool)

    def covariates(self, index: int) -> FloatArray:
        """Return what one picture shows ``(F,)``; NaN for what it does not."""
        return told(self.labels[index % len(self.pixels)])

    @property
    def grid(self) -> Geometry:
        """The grid of the volumes."""
        return Geometry((*self.pixels.shape[1:], 1), np.eye(4))

    def select(self, chosen: npt.NDArray[np.generic] | slice) -> Pictures:
        """Return some of the pictures, by index or by a bool of each."""
        return Pictures(self.pixels[chosen], self.labels[chosen], self.draws)

    def seen(self) -> FloatArray:
        """Return the pictures ``(N, H, W)`` as a model sees them, each of them once."""
        if not self.draws:
            return self.pixels
        return np.stack([self[index][0][..., 0] for index in range(len(self.pixels))])


def told(labels: Labels) -> FloatArray:
    """Return labels as a conditional model is told them: NaN where they are not known."""
    return np.where(labels == NOT_SHOWN, np.nan, labels).astype(np.float32)


def batches(pixels: FloatArray) -> Iterator[torch.Tensor]:
    """Yield pictures ``(N, H, W)`` as images ``(B, 1, H, W)``, a few at a time."""
    for start in range(0, len(pixels), AT_ONCE):
        yield torch.from_numpy(np.ascontiguousarray(pixels[start : start + AT_ONCE], dtype=np.float32))[:, None]


def look_at(detector: Detector, pictures: Pictures, at_once: int = AT_ONCE) -> Iterator[Inference]:
    """Yield what a detector says of each picture, many of them in one forward pass."""
    for start in range(0, len(pictures.pixels), at_once):
        scans = [pictures[index] for index in range(start, min(start + at_once, len(pictures.pixels)))]
        place = detector.view.locations(scans[0][1])[0]
        images = _stacked([detector.view.cut(voxels, place) for voxels, _ in scans])
        masks = _stacked([detector.view.target_slice(mask, place) for _, mask in scans])
        about = torch.from_numpy(told(pictures.labels[start : start + at_once]))
        with torch.inference_mode():
            evidence = detector.evidence(images, masks, about)
        maps = {name: _volumes(values, len(scans), scans[0][0].shape) for name, values in evidence.maps.items()}
        rebuilt = _volumes(evidence.reconstruction, len(scans), scans[0][0].shape)
        for row, (voxels, mask) in enumerate(scans):
            terms = {name: float(values[row]) for name, values in evidence.terms.items()}
            yield RawEvidence({name: some[row] for name, some in maps.items()}, rebuilt[row], terms), voxels, mask


def scored(scorer: Scorer, pictures: Pictures) -> Iterator[ScoredVolume]:
    """Yield the maps and scores of each picture, as of a scan."""
    for raw, voxels, mask in look_at(scorer.detector, pictures):
        yield scorer.postprocess(raw, voxels, mask)


def _stacked(images: Sequence[Array]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def _volumes(images: torch.Tensor, n: int, shape: tuple[int, ...]) -> FloatArray:
    return images.float().numpy().reshape(n, *shape)
