"""Train any detector on healthy scans: ``fit(detector, train, validation, run)``."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anomaly.cohort.synthetic import PlantedScan
from anomaly.core.errors import TrainingError
from anomaly.core.files import sha256_of_json
from anomaly.core.image_views import VolumeSource
from anomaly.core.progress import Progress
from anomaly.models.base import ClosedFormDetector, Detector, Diagnostics, NetworkDetector
from anomaly.models.device import find_devices, on_gpu
from anomaly.training.batches import ImageBatches
from anomaly.training.distributed import run_processes
from anomaly.training.hardware import matmul_precision, prepared_for_device
from anomaly.training.loop import (
    BEST_WEIGHTS,
    LAST_CHECKPOINT,
    TrainingLoop,
    diagnostic_batches,
    read_checkpoint,
)
from anomaly.training.run import FitReport, FitRun
from anomaly.training.settings import TrainingSettings
from anomaly.training.step import TrainingStep

MIN_TRAINING_SCANS = 2
_IGNORED_WARNINGS = (
    r".*Experiment logs directory .* exists and is not empty.*",  # both loggers share one folder
    r".*LeafSpec.* is deprecated.*",  # inside torch
    r".*GPU available but not used.*",  # the caller chose the device
    r".*Grad strides do not match bucket view strides.*",  # costs a copy in DDP
)


def fit(detector: Detector, train: VolumeSource, validation: Sequence[PlantedScan], run: FitRun) -> FitReport:
    """Train a detector in place; afterwards it is on the CPU, in ``eval`` mode.

    Parameters
    ----------
    detector
        The model: trained by gradient descent (:class:`NetworkDetector`) or fitted in closed form.
    train
        Healthy volumes to learn from.
    validation
        Held-out healthy scans with planted lesions. They choose the checkpoint of a network and are not learnt
        from; may be empty.
    run
        Recipe, folder, device, and whom to tell about progress. After the training of a network the folder holds
        ``last.ckpt`` (to continue from), ``best.safetensors`` (the weights that were kept) and ``logs/``.

    Raises
    ------
    TrainingError
        If there are too few scans, they lie on another grid, a loss or gradient is not finite, memory or devices
        are lacking, or the folder holds another training or a damaged checkpoint.
    """
    if isinstance(detector, NetworkDetector):
        return _fit_network(detector, train, validation, run)
    if not isinstance(detector, ClosedFormDetector):
        raise TypeError(f"expected a NetworkDetector or a ClosedFormDetector, found {type(detector).__name__}")
    started = time.monotonic()
    detector.fit_closed_form(train)
    detector.eval()
    return FitReport(n_scans=len(train), seconds=time.monotonic() - started)


def _fit_network(
    detector: NetworkDetector, train: VolumeSource, validation: Sequence[PlantedScan], run: FitRun
) -> FitReport:
    settings = run.settings
    _check_cohort(detector, train)
    detector.initialise(settings.seed)
    detector.prepare(train)
    find_devices(run.device, run.devices)  # refuses before other processes start
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.resume:
        for name in (LAST_CHECKPOINT, BEST_WEIGHTS):
            (run.folder / name).unlink(missing_ok=True)
    silent = replace(run, progress=None)  # a progress callback cannot be sent to another process
    work = partial(_train, detector, train, tuple(validation), silent, _fingerprint(detector, train, settings))
    if run.devices == 1:
        work(run.progress)
    else:
        run_processes(work, run.devices, run.progress)
    _load_best(detector, run)
    diagnostics = detector.diagnostics(diagnostic_batches(TrainingStep(detector, settings), train))
    return _report(detector, train, run, bool(validation), diagnostics)


def _train(
    detector: NetworkDetector,
    source: VolumeSource,
    validation: Sequence[PlantedScan],
    run: FitRun,
    fingerprint: str,
    progress: Progress | None,
) -> None:
    """Train in the only process or in one of several; the result is in the folder of the run."""
    prepared = prepared_for_device(detector, run, partial(losses_of_every_part, source, run.settings))
    gpu = on_gpu(run.device)
    with _quiet(), _memory_errors(run.settings), matmul_precision(run.settings.precision, gpu):
        TrainingLoop(prepared, source, validation, run, fingerprint, progress).train()


def losses_of_every_part(
    source: VolumeSource, settings: TrainingSettings, detector: NetworkDetector
) -> Iterator[Tensor]:
    """Yield one loss for each part of a detector that is trained in some step."""
    step = TrainingStep(detector, settings).train()
    batch = step.prepare(ImageBatches(source, detector.view, settings.batch_size, settings.seed).batch(0))
    seen: list[nn.Module] = []
    for number in range(settings.steps):
        part = detector.trainable_part(number, settings.steps)
        if not any(part is other for other in seen):
            seen.append(part)
            yield step(batch._replace(number=number * settings.accumulate))["loss"]


def _check_cohort(detector: NetworkDetector, train: VolumeSource) -> None:
    if len(train) < MIN_TRAINING_SCANS:
        raise TrainingError(
            f"found {len(train)} healthy scan(s) to train {detector.family!r} on; expected at least "
            f"{MIN_TRAINING_SCANS}; ingest more scans, or give the training part a larger share of the split"
        )
    if not train.grid.same_as(detector.grid):
        raise TrainingError(
            f"the cohort's grid is {train.grid.shape} at {train.grid.spacing} mm, the model's "
            f"{detector.grid.shape} at {detector.grid.spacing} mm; create the model on the cohort's grid"
        )
    detector.check(train)


def _fingerprint(detector: NetworkDetector, train: VolumeSource, settings: TrainingSettings) -> str:
    """Return a hash of everything that a resumed training must share with the one it continues."""
    model = detector.settings.model_dump(mode="json")
    return sha256_of_json([model, settings.model_dump(mode="json"), len(train), detector.grid.affine])


def _load_best(detector: NetworkDetector, run: FitRun) -> None:
    detector.to("cpu")
    detector.load_state_dict(load_file(run.folder / BEST_WEIGHTS))
    detector.requires_grad_().eval()


def _report(
    detector: NetworkDetector, train: VolumeSource, run: FitRun, validated: bool, diagnostics: Diagnostics
) -> FitReport:
    """Return what the last checkpoint says, whichever process wrote it."""
    state = read_checkpoint(run.folder / LAST_CHECKPOINT)["state"]
    numbers = {"best_step": float(state["best_step"]), **diagnostics.numbers}
    notes = list(diagnostics.warnings)
    if validated:
        numbers["planted_ap"] = state["best_score"]
    else:
        notes.append("no validation scans: the last weights were kept, not the best")
    if state["stopped_early"]:
        notes.append(f"stopped early at step {state['step']}: validation no longer improved")
    if explosions := state["explosions"]:
        notes.append(
            f"the gradient exploded {len(explosions)} time(s), first at step {explosions[0]}; lower "
            "training.learning_rate, and look at the curves in training/logs"
        )
    return FitReport(
        n_scans=len(train),
        steps=int(state["step"]),
        seconds=float(state["seconds"]),
        n_parameters=detector.n_parameters(),
        validation=numbers,
        notes=tuple(notes),
    )


@contextmanager
def _memory_errors(settings: TrainingSettings) -> Iterator[None]:
    """Explain what to do if the device has too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device's memory does not hold a batch of {settings.batch_size} ({str(error).splitlines()[0]}); "
            "lower training.batch_size and raise training.accumulate as much"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of Lightning and the warnings listed above while a training runs."""
    loggers = [logging.getLogger(name) for name in ("lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
