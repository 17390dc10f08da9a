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
from typing import ClassVar

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


def either_foreground(first: Tensor, second: Tensor) -> Tensor:
    """Return bool ``(B, 1, *S)``: where at least one of two images ``(B, C, *S)`` is not background (0)."""
    return ((first != 0) | (second != 0)).any(dim=1, keepdim=True)
