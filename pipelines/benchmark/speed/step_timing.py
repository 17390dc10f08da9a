"""How fast a training is, what its network computes, and what a step costs beyond the network itself."""

from __future__ import annotations

import copy
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anomaly.core.image_views import VolumeSource
from anomaly.models.base import StepInfo
from anomaly.models.device import on_gpu
from anomaly.training.batches import ImageBatches
from anomaly.training.fit import fit
from anomaly.training.hardware import in_bfloat16
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from anomaly.training.step import TrainingStep

N_WARM_UP_STEPS = 3
N_BLOCKS = 7  # each compares steps that are close in time, so that a drift of the machine's speed has little effect


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step: the median of each turn.

    Parameters
    ----------
    full
        As training runs it: reading, augmentation, corruption, loss, averaging of weights, gradient checks, logs.
    bare
        Forward, backward and optimiser of the same network on tensors that lie in memory, just before.
    """

    full: tuple[float, ...]
    bare: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Full cost over bare cost: the median over the blocks."""
        return statistics.median(full / bare for full, bare in zip(self.full, self.bare, strict=True))


class _CallTimer:
    """Replacement of a detector's method that records the times of its calls. Copies share the record."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.times = call, list[float]()

    def __call__(self, *arguments: Any) -> Any:
        self.times.append(time.perf_counter())
        return self.call(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> _CallTimer:
        copied = _CallTimer(copy.deepcopy(self.call, memo))
        copied.times = self.times
        return copied


class _StepTimer:
    """Replacement of a detector's loss that records the times of two steps. Copies share the record."""

    def __init__(self, loss: Callable[..., Any], begin: int, end: int, device: str) -> None:
        self.loss, self.begin, self.end, self.device = loss, begin, end, device
        self.time_of_step: dict[int, float] = {}

    def __call__(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> Any:
        if step_info.step in (self.begin, self.end):
            _wait(self.device)
            self.time_of_step[step_info.step] = time.perf_counter()
        return self.loss(images, mask, step_info, *corrupted)

    def __deepcopy__(self, memo: dict[int, Any]) -> _StepTimer:
        copied = _StepTimer(copy.deepcopy(self.loss, memo), self.begin, self.end, self.device)
        copied.time_of_step = self.time_of_step
        return copied

    @property
    def seconds(self) -> float:
        """Seconds of one step in between."""
        return (self.time_of_step[self.end] - self.time_of_step[self.begin]) / (self.end - self.begin)


def step_seconds(detector: Any, source: VolumeSource, settings: TrainingSettings, run: FitRun, steps: int) -> float:
    """Return the seconds of a step of a whole training, read to written, once it has warmed up.

    Parameters
    ----------
    detector
        What to train; its weights are changed.
    source
        Volumes to train on.
    settings
        The training settings; ``steps``, ``validate_every`` and ``accumulate`` are replaced.
    run
        How; its folder is removed.
    steps
        Steps to time, after a few to warm up.
    """
    watch = _StepTimer(
        detector.loss, N_WARM_UP_STEPS, N_WARM_UP_STEPS + steps, "cuda" if on_gpu(run.device) else "cpu"
    )
    detector.loss = watch
    try:
        fit(detector, source, [], replace(run, training=_timed(settings, steps)))
    finally:
        del detector.loss
        shutil.rmtree(run.folder, ignore_errors=True)
    return watch.seconds


def step_flop(detector: Any, source: VolumeSource, settings: TrainingSettings, device: str, steps: int) -> float:
    """Return the operations of the forward and backward pass of a step, of those that :func:`step_seconds` times.

    As usual, only floating-point products count (convolutions, matrices, attention), each with its sum: 2
    operations. It is the mean over steps. A step counts as much as the first step that trains the same part.
    """
    settings = _timed(settings, steps)
    module = TrainingStep(copy.deepcopy(detector), settings).train().to(device)
    stream = ImageBatches(source, detector.view, settings.batch_size, settings.seed)
    found: dict[nn.Module, int] = {}
    parts = [
        module.detector.trainable_part(step, settings.steps)
        for step in range(N_WARM_UP_STEPS, N_WARM_UP_STEPS + steps)
    ]
    for step, part in enumerate(parts, N_WARM_UP_STEPS):
        if part not in found:
            ready = module.prepare(move_data_to_device(stream.batch(step), device))
            with FlopCounterMode(display=False) as counter:
                module(ready)["loss"].backward()
            found[part] = int(counter.get_total_flops())
    return statistics.mean(found[part] for part in parts)


def _timed(settings: TrainingSettings, steps: int) -> TrainingSettings:
    total = N_WARM_UP_STEPS + steps + 1
    return settings.model_copy(update={"steps": total, "validate_every": total, "accumulate": 1})


def step_overhead(
    detector: Any,
    source: VolumeSource,
    settings: TrainingSettings,
    folder: Path,
    steps: int = 12,
    blocks: int = N_BLOCKS,
    device: str = "cpu",
) -> StepCost:
    """Measure full and bare training steps of a reconstructing network, in turn, on one machine.

    Parameters
    ----------
    detector
        A network detector with ``loss`` and ``reconstruct``; its weights are changed.
    source
        Volumes to train on, as training would be given them (memory-mapped).
    settings
        The training settings; ``steps`` and ``validate_every`` are replaced.
    folder
        For the training's files, which are removed.
    steps
        Steps to time in each turn, after a few to warm up.
    blocks
        How often to measure both.
    device
        ``"cpu"`` or ``"cuda"``.
    """
    bare, full = list[float](), list[float]()
    for turn in range(blocks):
        bare.append(_bare_step_seconds(detector, source, settings, steps, device))
        full.append(_full_step_seconds(detector, source, settings, folder / str(turn), steps, device))
    return StepCost(full=tuple(full), bare=tuple(bare))


def _full_step_seconds(
    detector: Any, source: VolumeSource, settings: TrainingSettings, folder: Path, steps: int, device: str
) -> float:
    total = steps + N_WARM_UP_STEPS + 1
    timed = settings.model_copy(update={"steps": total, "validate_every": total})
    clock = _CallTimer(detector.loss)
    detector.loss = clock
    try:
        fit(detector, source, [], FitRun(folder, timed, device=device, resume=False))
    finally:
        del detector.loss
        shutil.rmtree(folder, ignore_errors=True)  # checkpoints of every turn would fill a disk
    _wait(device)
    return _median_step(clock.times)


def _bare_step_seconds(
    detector: Any, source: VolumeSource, settings: TrainingSettings, steps: int, device: str
) -> float:
    detector.to(device).train()
    batch = ImageBatches(source, detector.view, settings.batch_size, settings.seed).batch(0)
    images, mask = batch.images.to(device), batch.mask.to(device)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=settings.learning_rate)
    times = []
    for _ in range(steps + N_WARM_UP_STEPS + 1):
        times.append(time.perf_counter())
        _bare_step(detector, images, mask, optimizer, settings, device)
        _wait(device)
    return _median_step(times)


def _bare_step(
    detector: Any,
    images: Tensor,
    mask: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    device: str,
) -> None:
    mixed = in_bfloat16(settings.precision, device == "cuda")
    with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
        error = detector.reconstruct(images, mask) - images[:, :1]
    loss = (error.float() ** 2 * mask).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _median_step(times: list[float]) -> float:
    return statistics.median(later - earlier for earlier, later in pairwise(times[N_WARM_UP_STEPS:]))
