"""Base classes of all models, from an intensity threshold to a diffusion model.

A detector learns what healthy images look like and measures how far a new image deviates from them.
:func:`anomaly.training.fit.fit` trains it on healthy scans only; ``evidence`` measures new images. Everything that
a detector learns is in its ``state_dict`` (buffers for baselines, parameters for networks), so all detectors are
saved in the same way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from anomaly.core.config import Settings
from anomaly.core.errors import TrainingError
from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.volume import Geometry

NORM_GROUPS = 8  # number of groups of group normalisation


def _divided_into_groups(channels: int) -> int:
    if channels < NORM_GROUPS or channels % NORM_GROUPS:
        raise ValueError(f"channels must be multiples of {NORM_GROUPS}")
    return channels


Width = Annotated[int, AfterValidator(_divided_into_groups)]
"""Number of channels of a layer that is group-normalised."""


class ModelSettings(Settings):
    """Base of every family's settings."""

    family: str = Field(description="name of the family")
    view: ImageView = Field(
        default=ImageView(), description="how a volume is divided into the images of the network"
    )


@dataclass(frozen=True, eq=False)
class Evidence:
    """How far a batch of images deviates from normal.

    Parameters
    ----------
    maps
        Name → ``(B, 1, *S)``. ``"residual"`` is signed: the image minus the expected image, in the image's
        intensity units or in standard deviations. ``"mean_deviation"``, ``"pca"`` and ``"restoration"`` are signed,
        too, with other expected images, and so is ``"change_logit"``. All other maps are unsigned: larger = more
        anomalous.
    terms
        Name → ``(B,)``, one number per image, larger = more anomalous, e.g. ``"kl"``, ``"negative_elbo"``.
    reconstruction
        ``(B, 1, *S)`` the pseudo-healthy image, in the units of the input.
    embedding
        ``(B, D)`` what :meth:`Embedder.embed` returns for these images, if the same forward pass computes it.
    """

    maps: Mapping[str, Tensor]
    reconstruction: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


@dataclass(frozen=True, eq=False)
class StepInfo:
    """The step of a training for which a loss is computed.

    Parameters
    ----------
    step
        Number of optimiser steps taken before this one.
    steps
        Number of optimiser steps of the whole training; the lengths of schedules are shares of it.
    rng
        Random number generator of this step, on the device of the images.
    covariates
        ``(B, D)`` covariates of the subjects, NaN where unknown; None if there are none.
    """

    step: int
    steps: int
    rng: torch.Generator
    covariates: Tensor | None = None

    def linear_warmup(self, value: float, share: float) -> float:
        """Return a weight that rises linearly from 0 to ``value`` over the first ``share`` of the training."""
        return value * min(1.0, (self.step + 1) / max(1.0, share * self.steps))


@dataclass(frozen=True)
class Diagnostics:
    """Measures of a training besides its loss and validation score, e.g. of mode collapse.

    Parameters
    ----------
    numbers
        Name → value, for the log.
    warnings
        For the log and the model card: each a sentence that states a problem and its remedy.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Detector(nn.Module, ABC):
    """A model of healthy images that measures how far an image deviates from them.

    Parameters
    ----------
    settings
        The family's settings. They are only stored here.
    grid
        The template grid the model works on.
    """

    family: ClassVar[str]
    Settings: ClassVar[type[ModelSettings]]

    def __init__(self, settings: ModelSettings, grid: Geometry) -> None:
        super().__init__()
        self.settings = settings
        self.grid = grid

    @property
    def view(self) -> ImageView:
        """How volumes are cut into the images this model sees."""
        return self.settings.view

    @property
    def slab_spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the three axes of an image; neighbouring slices form the first axis of a slab."""
        spacing = self.grid.spacing
        if self.view.kind != "slice":
            return spacing
        within_slice = [size for axis, size in enumerate(spacing) if axis != self.view.axis]
        return spacing[self.view.axis], within_slice[0], within_slice[1]

    @property
    def is_conditional(self) -> bool:
        """Whether the model uses the covariates of the subject."""
        return False

    @abstractmethod
    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return how far images deviate from normal.

        It is called under ``torch.inference_mode`` and in ``eval`` mode. It is deterministic: the evidence of an
        image does not depend on the other images of the batch.

        Parameters
        ----------
        images
            ``(B, C, *S)``.
        mask
            ``(B, 1, *S)`` bool; evidence is 0 outside it.
        covariates
            ``(B, D)`` covariates of the subjects, NaN where unknown; None if none is known. They are the same as in
            ``VolumeSource.covariates`` of the training volumes: age and sex for real scans. Only conditional models
            use them.
        """

    def n_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class ClosedFormDetector(Detector):
    """A detector that learns without gradient descent."""

    @abstractmethod
    def fit_closed_form(self, train: VolumeSource) -> None:
        """Learn from healthy volumes; called by :func:`anomaly.training.fit.fit`.

        Raises
        ------
        TrainingError
            If there are too few scans, or if they are on another grid.
        """


class NetworkDetector(Detector):
    """A detector that learns by gradient descent.

    A family implements :meth:`build`, :meth:`loss` and :meth:`reconstruct`. It may override :meth:`prepare` (learn
    something before the training, e.g. a mean image), :meth:`check` (refuse unsuitable volumes), :meth:`corrupt`
    and :meth:`evidence`.

    Attributes
    ----------
    network
        The network that :meth:`build` returned.
    """

    network: nn.Module

    def __init__(self, settings: ModelSettings, grid: Geometry) -> None:
        super().__init__(settings, grid)
        self.initialise(seed=0)

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network with initial weights; the caller has seeded torch."""

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return further inputs of the loss, e.g. corrupted images. They must not depend on the weights.

        On a CPU they are computed in advance, in another thread, while the network trains on the previous batch.
        The default is none.

        Parameters
        ----------
        images, mask
            As for :meth:`loss`.
        rng
            The only source of random numbers, on the device of the images.
        """
        del images, mask, rng
        return ()

    @abstractmethod
    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return scalars by name; ``"loss"`` is minimised, all are logged.

        Parameters
        ----------
        images
            ``(B, C, *S)``, already augmented.
        mask
            ``(B, 1, *S)`` bool.
        step_info
            The step, the only source of random numbers, and the covariates.
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
        """Return the part of the detector that is trained in a step, of ``steps`` in the whole training.

        The default is the whole detector. Families that train parts in alternation, e.g. generator and critic,
        override it. The other parts get no gradient, so the optimiser changes neither them nor their moments.
        """
        del step, steps
        return self

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether the detector can be validated after a step; until then no weights can be the best ones."""
        del step, steps
        return True

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return measures of the training, computed at every validation and for the selected weights at the end.

        Parameters
        ----------
        batches
            Infinite iterator, the same at every call: images ``(B, C, *S)`` as the loss gets them, masks
            ``(B, 1, *S)`` and covariates ``(B, D)``.
        """
        del batches
        return Diagnostics()

    @property
    def betas(self) -> tuple[float, float]:
        """Decay rates of the two moments of AdamW."""
        return 0.9, 0.999

    @property
    def compiles(self) -> bool:
        """Whether torch can compile the networks; false if the loss contains a gradient."""
        return True

    def prepare(self, train: VolumeSource) -> None:
        """Learn what is not learnt by gradient descent. The default does nothing."""

    def check(self, train: VolumeSource) -> None:
        """Raise TrainingError if this network cannot learn from these volumes."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """S, the spatial shape of the images this model sees."""
        return self.view.image_shape(self.grid.shape)

    def initialise(self, seed: int) -> None:
        """Build the network again, with random initial weights from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = self.build()
        self.eval()


def foreground_mask(values: Tensor) -> Tensor:
    """Return 1.0 where values are not 0, and 0.0 elsewhere; several times faster than a comparison and a cast."""
    return values.sign().abs_()


def either_foreground(first: Tensor, second: Tensor) -> Tensor:
    """Return bool ``(B, 1, *S)``: where at least one of two images ``(B, C, *S)`` is not background (0)."""
    return ((first != 0) | (second != 0)).any(dim=1, keepdim=True)


def target_slice(images: Tensor) -> Tensor:
    """Return the channel that is reconstructed, ``(B, 1, *S)``: the middle one of neighbouring slices."""
    middle = images.shape[1] // 2
    return images[:, middle : middle + 1]


def apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values inside the mask and 0 outside, also where values outside are not finite."""
    return torch.where(mask, values.float(), 0.0)


def residual(images: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
    """Return image minus reconstruction ``(B, 1, *S)``; negative where an image is darker than expected."""
    return apply_mask(target_slice(images) - reconstruction, mask)


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of ``(B, 1, *S)`` over the whole batch, a scalar."""
    return (values * weight).sum() / weight.sum().clamp_min(1)


def padded_shape(shape: Sequence[int], multiple: int, minimum: int = 1) -> tuple[int, ...]:
    """Return the smallest shape that is a multiple of ``multiple`` and at least ``minimum`` along every axis."""
    return tuple(max(math.ceil(n / multiple) * multiple, minimum) for n in shape)


def refuse_large_latent(size: int, channels: int, shape: Sequence[int]) -> None:
    """Raise TrainingError if a latent of this size is large enough to copy an image ``(channels, *shape)``."""
    voxels = channels * math.prod(shape)
    if size >= voxels:
        raise TrainingError(
            f"latent_size {size} is not smaller than the image ({voxels} voxels), so the network could copy "
            "lesions; lower model.latent_size"
        )


def pad(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images ``(B, C, *S)`` padded with background (0) on both sides of every axis, to ``shape``."""
    widths: list[int] = []
    for current, target in zip(reversed(images.shape[2:]), reversed(shape), strict=True):
        widths += [(target - current) // 2, target - current - (target - current) // 2]
    return F.pad(images, widths)


def crop(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert :func:`pad`: return the central part of ``shape``."""
    for axis, length in enumerate(shape, start=2):
        images = images.narrow(axis, (images.shape[axis] - length) // 2, length)
    return images


def volumes(train: VolumeSource) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield voxels float32 and mask bool, each ``(I, J, K)``, one scan at a time."""
    for index in range(len(train)):
        voxels, mask = train[index]
        yield torch.tensor(voxels), torch.tensor(mask, dtype=torch.bool)
