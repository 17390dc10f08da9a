"""How one model is fitted, and what the fit reports. Imports no deep-learning library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anomaly.training.settings import TrainingSettings


@dataclass(frozen=True)
class FitRun:
    """Where and how a fit runs: everything that is not part of the model.

    Parameters
    ----------
    folder
        Working folder for checkpoints and logs.
    training
        The training settings of networks; closed-form families do not use them.
    seed
        Seed of every random choice; ``None`` for the one in ``training``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    devices
        Number of devices that train together, each on its own batches.
    resume
        Continue from the last checkpoint in ``folder`` if there is one.
    compile, channels_last
        Two ways to train some networks faster on a GPU; see :mod:`anomaly.training.hardware`.
    progress
        Called with ``(done, total, message)``; ``None`` for silence.
    """

    folder: Path
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int | None = field(default=None, kw_only=True)
    device: str = field(default="auto", kw_only=True)
    devices: int = field(default=1, kw_only=True)
    resume: bool = field(default=True, kw_only=True)
    compile: bool = field(default=False, kw_only=True)
    channels_last: bool = field(default=False, kw_only=True)
    progress: Callable[[int, int, str], None] | None = field(default=None, kw_only=True)

    @property
    def settings(self) -> TrainingSettings:
        """The training settings with the seed of this run."""
        return self.training if self.seed is None else self.training.model_copy(update={"seed": self.seed})


@dataclass(frozen=True)
class FitReport:
    """What a fit did, for the model card.

    Parameters
    ----------
    n_scans
        Number of training scans.
    steps
        Optimiser steps taken; 0 for closed-form families.
    seconds
        Wall time, including that of interrupted runs up to their last checkpoint.
    n_parameters
        Number of trainable parameters.
    validation
        ``"planted_ap"`` and ``"best_step"`` of the selected weights, and the family's diagnostics.
    notes
        Sentences for the model card.
    """

    n_scans: int
    steps: int = 0
    seconds: float = 0.0
    n_parameters: int = 0
    validation: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
