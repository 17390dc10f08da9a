"""What happens beside the training steps: averaged weights, validation, health, checkpoints, progress."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from anomaly.cohort.synthetic import PlantedScan
from anomaly.core.files import atomic_path
from anomaly.training.planted_validation import planted_precision

BEST = "best.safetensors"
LAST = "last.ckpt"

_log = logging.getLogger(__name__)


class AveragedWeights(Callback):
    """Keeps an exponential running mean of the weights, which is what is validated and kept.

    The decay rises with the steps taken, min(decay, (1 + n) / (10 + n)), so that short trainings are not held
    back by their first weights. Buffers are those of the detector.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.detector: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start from a copy of the detector."""
        del trainer, stage
        self.detector = copy.deepcopy(pl_module.detector).requires_grad_(False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the copy to where the detector trains."""
        del trainer
        self.detector.to(pl_module.device).eval()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow every optimiser step."""
        del outputs, batch
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.update(pl_module.detector)

    @torch.no_grad()
    def update(self, detector: nn.Module) -> None:
        """Move the mean towards the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mean, current = list(self.detector.parameters()), list(detector.parameters())
        get_ema_multi_avg_fn(decay)(mean, current, 0)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the buffers before the mean is validated or saved; at every step that would cost too much."""
        del trainer
        for kept, buffer in zip(self.detector.buffers(), pl_module.detector.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"updates": self.updates, "weights": self.detector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.updates = state_dict["updates"]
        self.detector.load_state_dict(state_dict["weights"])


class PlantedValidation(Callback):
    """Keeps the averaged weights that find planted lesions in held-out healthy scans best.

    Longer training can teach a denoiser to copy lesions, so the training loss cannot choose. Without
    validation scans the last weights are kept.
    """

    def __init__(self, weights: AveragedWeights, scans: Sequence[PlantedScan], folder: Path, patience: int) -> None:
        self.weights, self.scans, self.folder, self.patience = weights, scans, folder, patience
        self.best, self.best_step, self.worse, self.stopped = -1.0, 0, 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not go on with a training that had stopped early."""
        del pl_module
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, keep the weights if they are the best, stop if patience is at its end."""
        if not pl_module.detector.ready_to_validate(trainer.global_step, trainer.max_steps):
            return
        score = self._score(trainer, pl_module.device)
        if score is None or score > self.best:
            self.best, self.best_step, self.worse = -1.0 if score is None else score, trainer.global_step, 0
            if trainer.is_global_zero:
                save_weights(self.weights.detector, self.folder / BEST)
        else:
            self.worse += 1
        self.stopped = bool(self.patience) and self.worse >= self.patience
        trainer.should_stop = trainer.should_stop or self.stopped
        if score is not None:
            write_log(trainer, {"planted_ap": score})

    def _score(self, trainer: Trainer, device: torch.device) -> float | None:
        """Return the score of the averaged weights, computed by one process, so that all stop at the same step."""
        score = None
        if self.scans and trainer.is_global_zero:
            score = planted_precision(self.weights.detector, self.scans, device)
        agreed: float | None = trainer.strategy.broadcast(score)
        return agreed

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {key: getattr(self, key) for key in ("best", "best_step", "worse", "stopped")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for key, value in state_dict.items():
            setattr(self, key, value)


class DiagnosticsCallback(Callback):
    """Logs how the training goes beside its loss, and warns where something is wrong."""

    def __init__(
        self, weights: AveragedWeights, batches: Callable[[], Iterator[tuple[Tensor, Tensor, Tensor]]]
    ) -> None:
        self.weights, self.batches = weights, batches

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the averaged weights."""
        del pl_module
        if not trainer.is_global_zero:
            return
        diagnostics = self.weights.detector.diagnostics(self.batches())
        if diagnostics.numbers:
            write_log(trainer, dict(diagnostics.numbers))
        for warning in diagnostics.warnings:
            _log.warning("step %d: %s", trainer.global_step, warning)


class LastCheckpoint(Callback):
    """Writes the checkpoint a killed training continues from; whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LAST

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint, after validation has been recorded."""
        del pl_module
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path)  # takes part in the saving, and writes nothing
            return
        with atomic_path(self.path) as temporary:
            trainer.save_checkpoint(temporary)


class Progress(Callback):
    """Tells the caller how far training is, and writes the logs."""

    LOG_EVERY = 10
    TELL_EVERY_SECONDS = 0.5

    def __init__(self, total: int, report: Callable[[int, int, str], None] | None) -> None:
        self.total, self.report = total, report
        self.told = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every few steps, and report at most twice a second."""
        del outputs, batch
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        done, now = trainer.global_step, time.monotonic()
        if done % self.LOG_EVERY == 0:
            write_log(trainer, {name: float(value) for name, value in pl_module.latest.items()})
        if self.report and (now - self.told > self.TELL_EVERY_SECONDS or done == self.total):
            self.told = now
            self.report(done, self.total, f"loss {float(pl_module.latest['loss']):.4g}")


def save_weights(detector: nn.Module, path: Path) -> None:
    """Write a detector's state as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file(state_on_cpu(detector), temporary)


def write_log(trainer: Trainer, values: dict[str, float]) -> None:
    """Write numbers to every log at the current step."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


def state_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state on the CPU, each tensor with its own contiguous memory."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}
