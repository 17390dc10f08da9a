"""The training loop, on Lightning Fabric: steps, averaged weights, validation, checkpoints and logs.

The batch of a step and its random numbers depend only on the seed and the step, so a resumed training arrives at
the same weights.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger, TensorBoardLogger
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from anomaly.cohort.planted_lesions import PlantedScan
from anomaly.core.errors import TrainingError
from anomaly.core.files import sha256_of_json
from anomaly.core.image_views import VolumeSource
from anomaly.core.signals import interrupts_deferred
from anomaly.models.base import NetworkDetector
from anomaly.models.components.ema import ema_update
from anomaly.models.device import find_devices
from anomaly.training.batches import Batch, ImageBatches, StepLoader
from anomaly.training.checkpoint import (
    BEST_WEIGHTS,
    LAST_CHECKPOINT,
    read_checkpoint,
    read_weights,
    save_checkpoint,
    save_weights,
)
from anomaly.training.gradient_monitor import GradientMonitor
from anomaly.training.hardware import MIN_GPU_BATCH_THREADS, in_bfloat16
from anomaly.training.planted_validation import planted_precision
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from anomaly.training.step import TrainingStep

FIRST_DIAGNOSTIC_BATCH = 2**31  # a batch number that no training reaches
LOG_EVERY_STEPS = 10
REPORT_EVERY_SECONDS = 0.5
CHECKPOINT_EVERY_SECONDS = 120.0  # besides that of every validation; a killed training loses no more
MAX_VALIDATION_WAIT = timedelta(hours=6)  # other processes wait while the first one validates

_log = logging.getLogger(__name__)


@dataclass
class LoopState:
    """The progress of a training, besides its weights; saved in every checkpoint."""

    step: int = 0  # optimiser steps taken
    seconds: float = 0.0  # wall time up to the checkpoint, with that of interrupted runs
    best_score: float = -1.0
    best_step: int = 0
    validations_without_improvement: int = 0
    stopped_early: bool = False
    validated: bool = True  # whether the validation that is due after this step is done
    explosions: list[int] = field(default_factory=list)  # steps


class TrainingLoop:
    """Trains a detector in one process, alone or together with the processes of other devices.

    Parameters
    ----------
    fabric
        The device of this process.
    detector
        The model, which is changed.
    source, validation, run
        As for :func:`anomaly.training.fit.fit`.
    """

    def __init__(
        self,
        fabric: Fabric,
        detector: NetworkDetector,
        source: VolumeSource,
        validation: Sequence[PlantedScan],
        run: FitRun,
    ) -> None:
        self.fabric, self.detector, self.source, self.validation = fabric, detector, source, validation
        self.run, self.settings = run, run.settings
        self.gpu = fabric.device.type == "cuda"
        mixed = in_bfloat16(self.settings.precision, self.gpu)
        self.step = TrainingStep(detector, self.settings, mixed, fabric.global_rank).train().requires_grad_()
        self.optimizer = make_optimizer(detector, self.settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_share(step, self.settings)
        )
        self.wrapped_step, self.wrapped_optimizer = fabric.setup(self.step, self.optimizer)
        self.average = copy.deepcopy(detector).requires_grad_(requires_grad=False).eval()
        self.monitor = GradientMonitor(self.settings, self.gpu, mixed)
        self.parts: dict[str, Any] = {
            "detector": detector, "average": self.average, "optimizer": self.optimizer, "schedule": self.schedule
        }  # fmt: skip
        self.state = LoopState()
        self.latest: dict[str, Tensor] = {}
        self._began = time.monotonic()
        self._reported = 0.0
        self._saved_at = self._began

    def train(self) -> None:
        """Train to the end, or until patience runs out; continue from the last checkpoint if there is one.

        An interrupt is passed on when the step that it finds is complete and a checkpoint is written.
        """
        self._resume()
        try:
            self._train()
        except KeyboardInterrupt:
            with interrupts_deferred():
                self._save_checkpoint()
            raise
        finally:
            for logger in self.fabric.loggers:
                logger.finalize("ended")

    def _train(self) -> None:
        batches = self._batches()
        while not self._is_finished():
            if not self.state.validated:
                self._validate()
                self._save_checkpoint()
                continue
            step_batches = [next(batches) for _ in range(self.settings.accumulate)]
            with interrupts_deferred():
                self._optimiser_step(step_batches)
            self._report()
            if time.monotonic() - self._saved_at > CHECKPOINT_EVERY_SECONDS:
                self._save_checkpoint()

    def _is_finished(self) -> bool:
        state = self.state
        return state.validated and (state.step == self.settings.steps or state.stopped_early)

    def _batches(self) -> Iterator[Batch]:
        """Return the batches of the steps that are left."""
        settings = self.settings
        images = ImageBatches(
            self.source, self.detector.view, settings.batch_size, settings.seed, self.fabric.global_rank, self.gpu
        )
        loader = StepLoader(
            images.batch if self.gpu else lambda number: self.step.prepare(images.batch(number)),
            range(self.state.step * settings.accumulate, settings.steps * settings.accumulate),
            threads=max(settings.num_workers, MIN_GPU_BATCH_THREADS if self.gpu else 0),
        )
        return iter(loader)

    @property
    def _trained_part(self) -> nn.Module:
        return self.detector.trainable_part(self.state.step, self.settings.steps)

    def _optimiser_step(self, batches: Sequence[Batch]) -> None:
        """Add up the gradients of some batches, clip them, and change the weights and their moving average."""
        for number, batch in enumerate(batches, start=1):
            with self.fabric.no_backward_sync(self.wrapped_step, enabled=number < len(batches)):
                losses = self.wrapped_step(self.fabric.to_device(batch))
                values = {name: value.detach() for name, value in losses.items()}
                self.latest |= values  # parts that are not trained now keep their latest loss
                self.monitor.check_losses(self._trained_part, values, self.state.step)
                self.fabric.backward(losses["loss"] / len(batches))
        self._clip()
        self.wrapped_optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        ema_update(self.average, self.detector, self.settings.ema_decay, self.state.step)
        self.state.validated = (
            self.state.step % self.settings.validate_every > 0 and self.state.step < self.settings.steps
        )

    def _clip(self) -> None:
        """Clip the gradient by its L2 norm; a gradient that is not finite does not reach the weights."""
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), self.settings.gradient_clip)
        self.latest["gradient_norm"] = norm.detach()
        # A fused optimiser reads this flag of torch's gradient scaler and skips the step; nothing waits for a GPU.
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        if self.monitor.explodes(self._trained_part, norm, self.state.step):
            self.state.explosions.append(self.state.step)

    def _validate(self) -> None:
        """Validate the averaged weights, log their diagnostics, and keep them if they are the best so far."""
        for average, buffer in zip(self.average.buffers(), self.detector.buffers(), strict=True):
            average.copy_(buffer)
        is_ready = self.detector.ready_to_validate(self.state.step, self.settings.steps)
        score = self._score() if is_ready else None
        self._log_diagnostics()
        with interrupts_deferred():
            if is_ready:
                self._keep_best(score)
            self.state.validated = True

    def _keep_best(self, score: float | None) -> None:
        """Keep the averaged weights if they are the best so far; stop if patience has run out."""
        state, patience = self.state, self.settings.patience
        if score is None or score > state.best_score:
            state.best_score, state.best_step = -1.0 if score is None else score, state.step
            state.validations_without_improvement = 0
            if self.fabric.is_global_zero:
                save_weights(self.average, self.run.folder / BEST_WEIGHTS)
        else:
            state.validations_without_improvement += 1
        state.stopped_early = 0 < patience <= state.validations_without_improvement
        if score is not None:
            self.fabric.log_dict({"planted_ap": score}, state.step)

    def _score(self) -> float | None:
        """Return the score of the averaged weights, computed by one process, so that all stop at the same step."""
        score = None
        if self.validation and self.fabric.is_global_zero:
            score = planted_precision(self.average, self.validation)
        agreed: float | None = self.fabric.broadcast(score)
        return agreed

    def _log_diagnostics(self) -> None:
        """Log the diagnostics of the averaged weights, and their warnings."""
        if not self.fabric.is_global_zero:
            return
        diagnostics = self.average.diagnostics(diagnostic_batches(self.step, self.source))
        if diagnostics.numbers:
            self.fabric.log_dict(diagnostics.numbers, self.state.step)
        for warning in diagnostics.warnings:
            _log.warning("step %d: %s", self.state.step, warning)

    def _report(self) -> None:
        """Log every few steps, and report progress at most twice a second."""
        if not self.fabric.is_global_zero:
            return
        done, now = self.state.step, time.monotonic()
        if done % LOG_EVERY_STEPS == 0:
            self.fabric.log_dict(self.latest, done)
        if self.run.progress and (now - self._reported > REPORT_EVERY_SECONDS or done == self.settings.steps):
            self._reported = now
            self.run.progress(done, self.settings.steps, f"loss {float(self.latest['loss']):.4g}")

    def _save_checkpoint(self) -> None:
        """Write the checkpoint from which a killed training continues; an interrupted write leaves the old one."""
        if not self.fabric.is_global_zero:
            return
        self.state.seconds = time.monotonic() - self._began
        checkpoint = {name: part.state_dict() for name, part in self.parts.items()}
        origin = {"fingerprint": self._fingerprint(), "devices": self.fabric.world_size}
        save_checkpoint(checkpoint | origin | {"state": asdict(self.state)}, self.run.folder / LAST_CHECKPOINT)
        self._saved_at = time.monotonic()

    def _fingerprint(self) -> str:
        """Return a hash of everything that a resumed training must share with the one it continues."""
        model, recipe = (settings.model_dump(mode="json") for settings in (self.detector.settings, self.settings))
        return sha256_of_json([model, recipe, len(self.source), self.detector.grid.affine])

    def _resume(self) -> None:
        path = self.run.folder / LAST_CHECKPOINT
        if not self.run.resume or not path.is_file():
            return
        checkpoint = read_checkpoint(path)
        self._refuse_another_training(checkpoint)
        for name, part in self.parts.items():
            part.load_state_dict(checkpoint[name])
        known = {entry.name for entry in fields(LoopState)}  # earlier versions saved others
        self.state = LoopState(**{name: value for name, value in checkpoint["state"].items() if name in known})
        self._began -= self.state.seconds
        if self.state.best_step:
            read_weights(self.run.folder / BEST_WEIGHTS)

    def _refuse_another_training(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("fingerprint") != self._fingerprint():
            raise TrainingError(
                "the working folder holds a checkpoint of a training with other settings or another number of "
                "scans, which this one cannot continue; give another folder, or start anew without resuming"
            )
        if checkpoint["devices"] != self.fabric.world_size:
            raise TrainingError(
                f"the working folder holds a checkpoint of a training on {checkpoint['devices']} device(s), which "
                f"{self.fabric.world_size} cannot continue: each adds batches of its own to every step. Give "
                f"--devices {checkpoint['devices']}, or another folder"
            )


def make_fabric(run: FitRun) -> Fabric:
    """Return Fabric for the device of this process, with loggers to CSV and TensorBoard in ``folder/logs``."""
    accelerator, devices = find_devices(run.device, run.devices)
    # A step may train one part only: the other parts have no gradient to wait for.
    several = DDPStrategy(find_unused_parameters=True, timeout=MAX_VALIDATION_WAIT)
    csv = CSVLogger(run.folder, name="logs", flush_logs_every_n_steps=1)  # a killed training keeps its log
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy="auto" if run.devices == 1 else several,
        plugins=LightningEnvironment(),  # also within a job of Slurm
        loggers=[csv, TensorBoardLogger(run.folder, name="logs", version=csv.version)],
    )
    fabric.launch()
    return fabric


def make_optimizer(detector: NetworkDetector, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(
        detector.parameters(),
        lr=settings.learning_rate,
        betas=detector.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate_share(step: int, settings: TrainingSettings) -> float:
    """Return the share of the peak learning rate: linear warm-up, then half a cosine (Loshchilov & Hutter 2017)."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def diagnostic_batches(step: TrainingStep, source: VolumeSource) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, masks and covariates of batches that are never trained on, the same each time."""
    images = ImageBatches(source, step.detector.view, step.settings.batch_size, step.settings.seed)
    for number in count(FIRST_DIAGNOSTIC_BATCH):
        prepared = step.prepare(move_data_to_device(images.batch(number), step.device))
        yield prepared.images, prepared.mask, prepared.covariates
