"""What training asks of a model, of a validation scan and of a run, so that it need not know any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from anomaly.core.image_views import ImageView
from anomaly.core.volume import FloatArray, MaskArray


@dataclass(frozen=True, eq=False)
class StepInfo:
    """Where a training stands when a loss is asked for.

    Parameters
    ----------
    step
        Optimiser steps taken, from 0.
    steps
        Optimiser steps in all; schedules such as a warm-up of β are shares of it.
    rng
        Random numbers of this step, on the device of the images.
    covariates
        ``(B, D)`` what the source knows of the subjects of the images, NaN where unknown; None where nothing is
        known of any.
    """

    step: int
    steps: int
    rng: torch.Generator
    covariates: Tensor | None = None


@dataclass(frozen=True)
class Diagnostics:
    """How a training goes beside its loss and its validation, e.g. whether a generator repeats itself.

    Parameters
    ----------
    numbers
        For the log.
    warnings
        What is wrong, each a sentence with its remedy, for the log and the model card.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class EvidenceLike(Protocol):
    """The part of a model's evidence that validation reads."""

    @property
    def maps(self) -> Mapping[str, Tensor]:
        """Name → ``(B, 1, *S)``."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A ``torch.nn.Module`` that can be trained."""

    @property
    def view(self) -> ImageView:
        """How volumes are cut into the images this model sees."""
        ...

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return what the loss takes beside images and mask and no weight has a part in, e.g. corrupted images.

        It is apart from the loss because a CPU makes it ahead, in another thread, while the network learns from
        the batch before. ``images`` are ``(B, C, *S)``, already augmented, ``mask`` is ``(B, 1, *S)`` bool.
        """
        ...

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return scalars by name; ``"loss"`` is minimised, the others are logged.

        ``corrupted`` is what :meth:`corrupt` returned for these images.
        """
        ...

    def evidence_given(self, images: Tensor, mask: Tensor, covariates: Tensor) -> EvidenceLike:
        """Return how far images are from normal; validation reads the map ``"residual"``."""
        ...

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the part of the learner whose weights this step changes; ``steps`` is the training's length.

        The whole learner, unless parts of it take turns: the players of a game, the layers of a stack. What does
        not learn gets no gradient, so the optimiser leaves it and its moments alone.
        """
        ...

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether the learner can be validated after a step; before, no weights are kept as the best."""
        ...

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return how the training goes; asked at every validation, and at last of the weights that are kept.

        ``batches`` never ends, is the same each time, and is made as it is taken: images ``(B, C, *S)`` as the
        loss gets them, masks ``(B, 1, *S)`` and covariates ``(B, D)``.
        """
        ...

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the two moments of AdamW."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether torch can compile its networks; not where its loss holds a gradient, which is derived again."""
        ...


class LabelledScan(Protocol):
    """A scan with a known lesion; arrays are ``(I, J, K)``."""

    @property
    def voxels(self) -> FloatArray:
        """The scan, float32."""
        ...

    @property
    def mask(self) -> MaskArray:
        """Foreground."""
        ...

    @property
    def lesion(self) -> MaskArray:
        """Where the lesion is."""
        ...

    @property
    def covariates(self) -> FloatArray:
        """What is known of the subject ``(D,)``."""
        ...


@dataclass(frozen=True)
class Run:
    """Where and how a training runs.

    Parameters
    ----------
    folder
        Working folder for checkpoints and logs.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    devices
        Number of devices that train together, each with batches of its own.
    resume
        Continue from the last checkpoint in ``folder`` where there is one.
    compile, channels_last
        Two ways to train some networks faster on a GPU; see :mod:`anomaly.training.hardware`.
    progress
        Called with ``(done, total, message)``; ``None`` for silence.
    """

    folder: Path
    device: str = field(default="auto", kw_only=True)
    devices: int = field(default=1, kw_only=True)
    resume: bool = field(default=True, kw_only=True)
    compile: bool = field(default=False, kw_only=True)
    channels_last: bool = field(default=False, kw_only=True)
    progress: Callable[[int, int, str], None] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Outcome:
    """What a training did.

    Parameters
    ----------
    steps
        Optimiser steps taken.
    seconds
        Wall time, that of interrupted runs before it included (up to their last checkpoint).
    validation
        ``"planted_ap"`` and ``"best_step"`` of the weights that were kept.
    notes
        Sentences for the model card.
    """

    steps: int
    seconds: float
    validation: Mapping[str, float]
    notes: tuple[str, ...] = ()


def state_on_cpu(module: Any) -> dict[str, Tensor]:
    """Return a copy of a module's state on the CPU, each tensor with its own contiguous memory."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}
