"""The contract every model obeys, from an intensity threshold to a diffusion model.

A detector answers two questions: what does normal look like, and how far is this from it?
:func:`anomaly.training.fit.fit` trains it on healthy scans only; ``evidence`` answers for new images. Everything a
detector has learnt is in its ``state_dict`` (buffers for baselines, parameters for networks), so one way of saving
serves all.
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

GROUPS = 8  # of group normalisation


def _divided_into_groups(channels: int) -> int:
    if channels < GROUPS or channels % GROUPS:
        raise ValueError(f"channels must be multiples of {GROUPS}")
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
    """How far a batch of images is from normal.

    Parameters
    ----------
    maps
        Name → ``(B, 1, *S)``. ``"residual"`` is signed: the image minus what was expected, in the image's
        intensity units (or in standard deviations); so are ``"mean_deviation"``, ``"pca"`` and ``"restoration"``,
        against other expectations. Every other map is unsigned, larger = more anomalous.
    terms
        Name → ``(B,)``, one number per image, larger = more anomalous, e.g. ``"kl"``, ``"negative_elbo"``.
    reconstruction
        ``(B, 1, *S)`` the pseudo-healthy image, in the units of the input.
    embedding
        ``(B, D)`` what :meth:`Embedder.embed` returns for these images, where the same forward pass computed it.
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
        Optimiser steps taken, from 0.
    steps
        Optimiser steps of the whole training; schedules such as a warm-up of β are shares of it.
    rng
        Random numbers of this step, on the device of the images.
    covariates
        ``(B, D)`` covariates of the subjects of the images, NaN where unknown; None where there are none.
    """

    step: int
    steps: int
    rng: torch.Generator
    covariates: Tensor | None = None


@dataclass(frozen=True)
class Diagnostics:
    """Measures of a training besides its loss and its validation, e.g. whether a generator repeats itself.

    Parameters
    ----------
    numbers
        For the log.
    warnings
        What is wrong, each a sentence with its remedy, for the log and the model card.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Detector(nn.Module, ABC):
    """What does normal look like, and how far is this from it?

    Parameters
    ----------
    settings
        The family's settings, stored; nothing is learnt or read here.
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
        """Return how far images are from normal.

        Called under ``torch.inference_mode`` and in ``eval`` mode. Deterministic: the same input gives the same
        evidence, independently of the rest of the batch.

        Parameters
        ----------
        images
            ``(B, C, *S)``.
        mask
            ``(B, 1, *S)`` bool; evidence is 0 outside it.
        covariates
            ``(B, D)`` covariates of the subjects, NaN where unknown; None where none is known. They are those of
            ``VolumeSource.covariates`` of the training volumes: age and sex for real scans. Only conditional models
            use them.
        """

    def n_parameters(self) -> int:
        """Return the number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class ClosedFormDetector(Detector):
    """A detector that learns in one pass over the scans, without gradient descent."""

    @abstractmethod
    def fit_closed_form(self, train: VolumeSource) -> None:
        """Learn from healthy volumes. Called by :func:`anomaly.training.fit.fit`.

        Raises
        ------
        TrainingError
            If there are too few scans, or they lie on another grid.
        """


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
    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return scalars by name; ``"loss"`` is minimised, the others are logged.

        Parameters
        ----------
        images
            ``(B, C, *S)``, already augmented.
        mask
            ``(B, 1, *S)`` bool.
        step_info
            The step, its random numbers (nothing else random may be used) and the covariates.
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


def foreground_mask(values: Tensor) -> Tensor:
    """Return 1.0 where values are not 0, and 0.0 elsewhere; several times faster than a comparison and a cast."""
    return values.sign().abs_()


def either_foreground(first: Tensor, second: Tensor) -> Tensor:
    """Return bool ``(B, 1, *S)``: where at least one of two images ``(B, C, *S)`` is not background (0)."""
    return ((first != 0) | (second != 0)).any(dim=1, keepdim=True)


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


def volumes(train: VolumeSource) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield voxels float32 and mask bool, each ``(I, J, K)``, one scan at a time."""
    for index in range(len(train)):
        voxels, mask = train[index]
        yield torch.tensor(voxels), torch.tensor(mask, dtype=torch.bool)
