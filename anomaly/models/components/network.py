"""What all trained networks share: seeded construction, training, padding, the residual.

A family file adds its network, its loss, its reconstruction and, where it has more than a residual, its evidence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import AfterValidator
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import Geometry
from anomaly.models.base import Detector, Diagnostics, Evidence, ModelSettings, StepInfo

GROUPS = 8  # of group normalisation


def _divided_into_groups(channels: int) -> int:
    if channels < GROUPS or channels % GROUPS:
        raise ValueError(f"channels must be multiples of {GROUPS}")
    return channels


Width = Annotated[int, AfterValidator(_divided_into_groups)]
"""Number of channels of a layer that is group-normalised."""


class NetworkDetector(Detector):
    """A detector that learns by gradient descent.

    A family implements :meth:`build`, :meth:`loss` and :meth:`reconstruct`; it may override :meth:`prepare` (what
    is learnt before training, e.g. a mean image), :meth:`check` (what cannot be trained), :meth:`corrupt` and
    :meth:`evidence`.

    Attributes
    ----------
    network
        What :meth:`build` returned.
    """

    network: nn.Module

    def __init__(self, settings: ModelSettings, grid: Geometry) -> None:
        super().__init__(settings, grid)
        self.initialise(seed=0)

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network with fresh weights; the caller has seeded torch."""

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return what the loss takes besides images and mask, e.g. corrupted images. It depends on no weight.

        It is apart from the loss because a CPU makes it ahead, in another thread, while the network learns from
        the batch before. Nothing, unless a family corrupts images.

        Parameters
        ----------
        images, mask
            As for :meth:`loss`.
        rng
            The only random numbers to use, on the device of the images.
        """
        del images, mask, rng
        return ()

    @abstractmethod
    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return scalars by name; ``"loss"`` is minimised, the others are logged.

        Parameters
        ----------
        images
            ``(B, C, *S)``, already augmented.
        mask
            ``(B, 1, *S)`` bool.
        at
            The step, and its random numbers. Nothing else random may be used.
        corrupted
            What :meth:`corrupt` returned for these images.
        """

    @abstractmethod
    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the pseudo-healthy ``(B, 1, *S)`` for images ``(B, C, *S)``."""

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the signed residual; see the base class."""
        del covariates
        reconstruction = self.reconstruct(images, mask)
        return Evidence({"residual": residual(images, reconstruction, mask)}, apply_mask(reconstruction, mask))

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the part of the detector whose weights this step changes; ``steps`` is the training's length.

        The whole detector, unless parts of it take turns: generator and critic, the layers of a stack. The other
        parts get no gradient, so the optimiser leaves them and their moments alone.
        """
        del step, steps
        return self

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether the detector can be validated after a step; before, no weights are kept as the best."""
        del step, steps
        return True

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return measures of the training; computed at every validation, and at the end for the selected weights.

        Parameters
        ----------
        batches
            Endless, the same each time, and made as they are taken: images ``(B, C, *S)`` as the loss gets them,
            masks ``(B, 1, *S)`` and covariates ``(B, D)``.
        """
        del batches
        return Diagnostics()

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the two moments of AdamW."""
        return 0.9, 0.999

    @property
    def compiles(self) -> bool:
        """Whether torch can compile the networks; it cannot where the loss contains a gradient."""
        return True

    def prepare(self, train: VolumeSource) -> None:
        """Learn what is not learnt by gradient descent. Nothing, unless a family says so."""

    def check(self, train: VolumeSource) -> None:
        """Raise TrainingError where this network cannot learn from these volumes."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """S, the spatial shape of the images this model sees."""
        return self.view.image_shape(self.grid.shape)

    def initialise(self, seed: int) -> None:
        """Build the network anew, with the weights that a seed draws."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = self.build()
        self.eval()


def target_slice(images: Tensor) -> Tensor:
    """Return the channel that is explained, ``(B, 1, *S)``: the middle one of neighbouring slices."""
    middle = images.shape[1] // 2
    return images[:, middle : middle + 1]


def apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values inside the mask, and 0 outside whatever was there."""
    return torch.where(mask, values.float(), 0.0)


def residual(images: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
    """Return image minus reconstruction ``(B, 1, *S)``; negative where a scan is darker than expected."""
    return apply_mask(target_slice(images) - reconstruction, mask)


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of ``(B, 1, *S)`` over the whole batch, a scalar."""
    return (values * weight).sum() / weight.sum().clamp_min(1)


def padded_shape(shape: Sequence[int], multiple: int, least: int = 1) -> tuple[int, ...]:
    """Return the smallest shape that strides divide and that is at least ``least`` along every axis."""
    return tuple(max(math.ceil(n / multiple) * multiple, least) for n in shape)


def refuse_large_latent(size: int, channels: int, shape: Sequence[int]) -> None:
    """Raise TrainingError for a latent that is long enough to copy an image ``(channels, *shape)``."""
    voxels = channels * math.prod(shape)
    if size >= voxels:
        raise TrainingError(
            f"latent_size {size} is not smaller than the image ({voxels} voxels), so the network could copy "
            "lesions; lower model.latent_size"
        )


def pad(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images ``(B, C, *S)`` with background added on both sides up to ``shape``."""
    widths: list[int] = []
    for have, want in zip(reversed(images.shape[2:]), reversed(shape), strict=True):
        widths += [(want - have) // 2, want - have - (want - have) // 2]
    return F.pad(images, widths)


def crop(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pad`."""
    for axis, want in enumerate(shape, start=2):
        images = images.narrow(axis, (images.shape[axis] - want) // 2, want)
    return images
