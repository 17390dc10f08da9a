"""The training loop, on Lightning Fabric: steps, averaged weights, validation, checkpoints and logs.

Fabric supplies the devices, distributed data parallel training (DDP) and the loggers. The batch of a step and its
random numbers depend only on the seed and the step, so a resumed training arrives at the same weights.
"""

from __future__ import annotations

import logging
import math
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger, TensorBoardLogger
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from safetensors.torch import save_file
from torch import Tensor, nn

from anomaly.cohort.synthetic import PlantedScan
from anomaly.core.errors import TrainingError
from anomaly.core.files import atomic_path
from anomaly.core.image_views import VolumeSource
from anomaly.core.progress import Progress
from anomaly.models.base import NetworkDetector
from anomaly.models.device import find_devices, on_gpu
from anomaly.training.averaging import AveragedWeights
from anomaly.training.batches import Batch, ImageBatches, StepLoader
from anomaly.training.gradient_monitor import GradientMonitor
from anomaly.training.hardware import GPU_THREADS, in_bfloat16
from anomaly.training.planted_validation import planted_precision
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from anomaly.training.step import PreparedBatch, TrainingStep

BEST_WEIGHTS = "best.safetensors"
LAST_CHECKPOINT = "last.ckpt"
FIRST_DIAGNOSTIC_BATCH = 2**31  # a batch number that no training reaches
LOG_EVERY_STEPS = 10
REPORT_EVERY_SECONDS = 0.5
MAX_VALIDATION_WAIT = timedelta(hours=6)  # other processes wait while the first one validates

_log = logging.getLogger(__name__)


@dataclass
class LoopState:
    """The progress of a training, besides its weights; saved in every checkpoint."""

    step: int = 0  # optimiser steps taken
    seconds: float = 0.0  # wall time of interrupted runs before this one
    best_score: float = -1.0
    best_step: int = 0
    validations_without_improvement: int = 0
    stopped_early: bool = False
    averaged_steps: int = 0
    explosions: list[int] = field(default_factory=list)


class TrainingLoop:
    """Trains a detector in the only process, or in one of several.

    Parameters
    ----------
    detector
        The model.
    source
        Healthy volumes to learn from.
    validation
        Scans with planted lesions that select the weights to keep; without any, the last weights are kept.
    run
        Recipe, folder and device.
    fingerprint
        Hash of everything that a resumed training must share with the one it continues.
    progress
        Called with the steps done, the number of steps, and the loss.
    """

    def __init__(
        self,
        detector: NetworkDetector,
        source: VolumeSource,
        validation: Sequence[PlantedScan],
        run: FitRun,
        fingerprint: str,
        progress: Progress | None,
    ) -> None:
        self.detector, self.source, self.validation = detector, source, validation
        self.run, self.settings, self.fingerprint, self.progress = run, run.settings, fingerprint, progress
        self.fabric = make_fabric(run)
        self.gpu = on_gpu(run.device)
        mixed = in_bfloat16(self.settings.precision, self.gpu)
        self.step = TrainingStep(detector, self.settings, mixed, self.fabric.global_rank).train().requires_grad_()
        self.optimizer = make_optimizer(detector, self.settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_share(step, self.settings)
        )
        self.wrapped_step, self.wrapped_optimizer = self.fabric.setup(self.step, self.optimizer)
        self.average = AveragedWeights(detector, self.settings.ema_decay, self.fabric.device)
        self.monitor = GradientMonitor(self.settings, self.fabric.device, mixed)
        self.state = LoopState()
        self.latest: dict[str, Tensor] = {}
        self._began = time.monotonic()
        self._reported = 0.0
        self.loggers = make_loggers(run.folder) if self.fabric.is_global_zero else []

    def train(self) -> None:
        """Train to the end, or until patience runs out; continue from the last checkpoint if there is one."""
        self._resume()
        while self.state.step < self.settings.steps and not self.state.stopped_early:
            for batches in self._steps_until_validation():
                self._optimiser_step(batches)
                self._report()
            self.average.copy_buffers(self.detector)
            self._validate()
            self._log_diagnostics()
            self._save_checkpoint()
        for logger in self.loggers:
            logger.finalize("success")

    def _steps_until_validation(self) -> Iterator[list[Batch | PreparedBatch]]:
        """Yield the batches of each optimiser step up to the next validation."""
        settings, start = self.settings, self.state.step
        end = min(start + settings.validate_every, settings.steps)
        images = ImageBatches(
            self.source, self.detector.view, settings.batch_size, settings.seed, self.fabric.global_rank, self.gpu
        )
        loader: StepLoader[Any] = StepLoader(
            images.batch if self.gpu else lambda number: self.step.prepare(images.batch(number)),
            range(start * settings.accumulate, end * settings.accumulate),
            threads=max(settings.num_workers, GPU_THREADS if self.gpu else 0),
        )
        batches = iter(loader)
        for _ in range(start, end):
            yield [next(batches) for _ in range(settings.accumulate)]

    def _optimiser_step(self, batches: Sequence[Batch | PreparedBatch]) -> None:
        """Add up the gradients of some batches, clip them, and change the weights."""
        for number, batch in enumerate(batches, start=1):
            on_device = self.fabric.to_device(batch) if self.gpu else batch
            with self.fabric.no_backward_sync(self.wrapped_step, enabled=number < len(batches)):
                losses = self.wrapped_step(on_device)
                values = {name: value.detach() for name, value in losses.items()}
                self.latest |= values  # parts that are not trained now keep their latest loss
                self.monitor.check_losses(self.step.trained_part, values, self.state.step)
                self.fabric.backward(losses["loss"] / len(batches))
        self._clip()
        self.wrapped_optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self.average.update(self.detector)

    def _clip(self) -> None:
        """Clip the gradient by its L2 norm; a gradient that is not finite does not reach the weights."""
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), self.settings.gradient_clip)
        self.latest["gradient_norm"] = norm.detach()
        # A fused optimiser reads this flag of torch's gradient scaler and skips the step; nothing waits for a GPU.
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.monitor.check_norm(self.step.trained_part, norm, self.state.step)

    def _validate(self) -> None:
        """Keep the averaged weights if they are the best so far; stop if patience has run out."""
        state = self.state
        if not self.detector.ready_to_validate(state.step, self.settings.steps):
            return
        score = self._score()
        if score is None or score > state.best_score:
            state.best_score, state.best_step = -1.0 if score is None else score, state.step
            state.validations_without_improvement = 0
            if self.fabric.is_global_zero:
                save_weights(self.average.detector, self.run.folder / BEST_WEIGHTS)
        else:
            state.validations_without_improvement += 1
        patience = self.settings.patience
        state.stopped_early = bool(patience) and state.validations_without_improvement >= patience
        if score is not None:
            self._write_log({"planted_ap": score})

    def _score(self) -> float | None:
        """Return the score of the averaged weights, computed by one process, so that all stop at the same step."""
        score = None
        if self.validation and self.fabric.is_global_zero:
            score = planted_precision(self.average.detector, self.validation)
        agreed: float | None = self.fabric.broadcast(score)
        return agreed

    def _log_diagnostics(self) -> None:
        """Log the diagnostics of the averaged weights, and their warnings."""
        if not self.fabric.is_global_zero:
            return
        diagnostics = self.average.detector.diagnostics(diagnostic_batches(self.step, self.source))
        if diagnostics.numbers:
            self._write_log(dict(diagnostics.numbers))
        for warning in diagnostics.warnings:
            _log.warning("step %d: %s", self.state.step, warning)

    def _report(self) -> None:
        """Log every few steps, and report progress at most twice a second."""
        if not self.fabric.is_global_zero:
            return
        done, now = self.state.step, time.monotonic()
        if done % LOG_EVERY_STEPS == 0:
            self._write_log({name: float(value) for name, value in self.latest.items()})
        if self.progress and (now - self._reported > REPORT_EVERY_SECONDS or done == self.settings.steps):
            self._reported = now
            self.progress(done, self.settings.steps, f"loss {float(self.latest['loss']):.4g}")

    def _write_log(self, values: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics(values, step=self.state.step)

    def _save_checkpoint(self) -> None:
        """Write the checkpoint from which a killed training continues; an interrupted write leaves the old one."""
        if not self.fabric.is_global_zero:
            return
        state = asdict(self.state) | {
            "seconds": self.state.seconds + time.monotonic() - self._began,
            "averaged_steps": self.average.updates,
            "explosions": self.monitor.explosions,
        }
        checkpoint = {
            "fingerprint": self.fingerprint,
            "devices": self.fabric.world_size,
            "state": state,
            "detector": self.detector.state_dict(),
            "average": self.average.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with atomic_path(self.run.folder / LAST_CHECKPOINT) as temporary:
            torch.save(checkpoint, temporary)

    def _resume(self) -> None:
        path = self.run.folder / LAST_CHECKPOINT
        if not self.run.resume or not path.is_file():
            return
        checkpoint = read_checkpoint(path, self.fabric.device)
        self._refuse_another_training(checkpoint)
        self.detector.load_state_dict(checkpoint["detector"])
        self.average.detector.load_state_dict(checkpoint["average"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        self.state = LoopState(**checkpoint["state"])
        self.average.updates = self.state.averaged_steps
        self.monitor.explosions = list(self.state.explosions)

    def _refuse_another_training(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("fingerprint") != self.fingerprint:
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
    """Return Fabric for the device or devices of a run."""
    accelerator, devices = find_devices(run.device, run.devices)
    if run.devices == 1:
        return Fabric(accelerator=accelerator, devices=devices)
    # A step may train one part only: the other parts have no gradient to wait for.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=MAX_VALIDATION_WAIT)
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, plugins=[LightningEnvironment()])
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


def make_loggers(folder: Path) -> list[Any]:
    """Return a CSV and a TensorBoard logger of one version in ``folder/logs``."""
    csv = CSVLogger(folder, name="logs", flush_logs_every_n_steps=1)  # a killed training keeps its log
    return [csv, TensorBoardLogger(folder, name="logs", version=csv.version)]


def diagnostic_batches(step: TrainingStep, source: VolumeSource) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, masks and covariates of batches that are never trained on, the same each time."""
    images = ImageBatches(source, step.detector.view, step.settings.batch_size, step.settings.seed)
    for number in count(FIRST_DIAGNOSTIC_BATCH):
        batch = images.batch(number)
        on_device = Batch(number, *(tensor.to(step.device) for tensor in batch[1:]))
        prepared = step.prepare(on_device)
        yield prepared.images, prepared.mask, prepared.covariates


def save_weights(detector: nn.Module, path: Path) -> None:
    """Write the state of a detector as safetensors, atomically."""
    state = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in detector.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises
    ------
    TrainingError
        If the file is damaged.
    """
    if not zipfile.is_zipfile(path):  # torch writes zip files, whose directory comes last
        raise TrainingError(f"{path} is damaged: expected a whole checkpoint; delete it to start anew")
    checkpoint: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=True)
    return checkpoint
