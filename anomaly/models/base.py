"""The contract every model obeys, from an intensity threshold to a diffusion model.

A detector answers two questions: what does normal look like, and how far is this from it?
:func:`anomaly.training.fit.fit` trains it on healthy scans only; ``evidence`` answers for new images. Everything a
detector has learnt is in its ``state_dict`` (buffers for baselines, parameters for networks), so one way of saving
serves all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeGuard, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.config import Settings
from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.volume import Geometry


class ModelSettings(Settings):
    """Base of every family's settings."""

    family: str = Field(description="name of the family")
    view: ImageView = Field(default=ImageView(), description="how a volume is cut into the images the model sees")


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

    @abstractmethod
    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return how far images ``(B, C, *S)`` are from normal inside ``mask`` ``(B, 1, *S)``.

        Called under ``torch.inference_mode`` and in ``eval`` mode. Deterministic: the same input gives the same
        evidence, whatever else is in the batch.
        """

    def evidence_given(self, images: Tensor, mask: Tensor, covariates: Tensor) -> Evidence:
        """Return the evidence of images whose subjects' covariates ``(B, D)`` are given, NaN where unknown.

        They are what the training volumes came with, as ``VolumeSource.covariates``: age and sex of real scans.
        This is what scoring and validation ask; only conditional families look at the covariates.
        """
        del covariates
        return self.evidence(images, mask)

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


@runtime_checkable
class Reconstructor(Protocol):
    """A model that can show the healthy version of an image."""

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the pseudo-healthy ``(B, 1, *S)`` for images ``(B, C, *S)``."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A model that can say in a few numbers what an image is like, so that similar scans can be found."""

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the latent code ``(B, D)`` of images ``(B, C, *S)``."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A model that makes an image of a latent code, be it one that an embedder has given or one between two."""

    def decode(self, z: Tensor) -> Tensor:
        """Return the images ``(B, C, *S)`` of codes ``(B, D)``."""
        ...


class Coder(Embedder, Decoder, Protocol):
    """A model that makes codes of images, and images of codes."""


@runtime_checkable
class Interpolator(Protocol):
    """A model without one short code that can still make images between two others."""

    def interpolate(self, first: Tensor, second: Tensor, weight: float) -> Tensor:
        """Return the images ``(B, C, *S)`` at ``weight``, 0 to 1, of the way from some ``(B, C, *S)`` to others."""
        ...


@runtime_checkable
class ConditionalInterpolator(Protocol):
    """A model that may be told of subjects, and can make images between those of two."""

    def interpolate_given(
        self, first: Tensor, second: Tensor, about: tuple[Tensor, Tensor], weight: float
    ) -> Tensor:
        """Return the images ``(B, C, *S)`` at ``weight``, 0 to 1, of the way from some ``(B, C, *S)`` to others.

        ``about`` are the covariates ``(B, D)`` of the ones and of the others, NaN where unknown.
        """
        ...


def either_foreground(first: Tensor, second: Tensor) -> Tensor:
    """Return bool ``(B, 1, *S)``: where one of two images ``(B, C, *S)`` is not 0, which is what lies outside."""
    return ((first != 0) | (second != 0)).any(dim=1, keepdim=True)


def interpolates(model: object) -> TypeGuard[Coder | Interpolator]:
    """Return whether :func:`interpolated` can ask a model."""
    return isinstance(model, Interpolator) or (isinstance(model, Embedder) and isinstance(model, Decoder))


def interpolated(
    model: Coder | Interpolator,
    first: Tensor,
    second: Tensor,
    n: int,
    about: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return images ``(n, B, C, *S)`` on the way from images ``(B, C, *S)`` to others.

    It leads straight from code to code, unless the model knows a way of its own. ``about``, covariates ``(B, D)``
    of the ones and of the others, is for models that are told them.
    """
    weights = torch.linspace(0, 1, n).tolist()
    if about is not None and isinstance(model, ConditionalInterpolator):
        return torch.stack([model.interpolate_given(first, second, about, weight) for weight in weights])
    if isinstance(model, Interpolator):
        return torch.stack([model.interpolate(first, second, weight) for weight in weights])
    mask = torch.ones_like(first[:, :1], dtype=torch.bool)
    start, end = model.embed(first, mask), model.embed(second, mask)
    return torch.stack([model.decode(torch.lerp(start, end, weight)) for weight in weights])


@runtime_checkable
class Generator(Protocol):
    """A model that can make new normal images."""

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return ``n`` new images ``(n, C, *S)``."""
        ...


@runtime_checkable
class ConditionalGenerator(Protocol):
    """A model that can make new normal images of subjects of whom something is known."""

    def sample_given(self, covariates: Tensor, rng: torch.Generator) -> Tensor:
        """Return a new image ``(n, C, *S)`` for each row of covariates ``(n, D)``, NaN where unknown.

        They are as the training volumes come with them. A model that is not told any makes images like any other.
        """
        ...
