"""Train any detector on healthy scans: ``fit(detector, train, validation, run)``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from anomaly.cohort.planted_lesions import PlantedScan
from anomaly.core.errors import TrainingError
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import ClosedFormDetector, Detector, Diagnostics, NetworkDetector
from anomaly.models.device import find_devices, on_gpu
from anomaly.training.checkpoint import BEST_WEIGHTS, LAST_CHECKPOINT, read_checkpoint, read_weights
from anomaly.training.distributed import run_processes
from anomaly.training.hardware import copy_for_device, matmul_precision
from anomaly.training.loop import TrainingLoop, diagnostic_batches, make_fabric
from anomaly.training.run import FitReport, FitRun
from anomaly.training.settings import TrainingSettings
from anomaly.training.step import TrainingStep

MIN_TRAINING_SCANS = 2
_IGNORED_WARNINGS = (
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
        Training settings, folder, device and progress callback. After the training of a network the folder holds
        ``last.ckpt`` (to continue from), ``best.safetensors`` (the weights that were kept) and ``logs/``.

    Raises
    ------
    TrainingError
        If there are too few scans, they lie on another grid, a loss or gradient is not finite, memory or devices
        are lacking, or the folder holds another training or a damaged checkpoint.
    KeyboardInterrupt
        On an interrupt, after the current step, when a checkpoint is written. The same call continues.
    """
    if isinstance(detector, ClosedFormDetector):
        started = time.monotonic()
        detector.fit_closed_form(train)
        detector.eval()
        return FitReport(n_scans=len(train), seconds=time.monotonic() - started)
    if not isinstance(detector, NetworkDetector):
        raise TypeError(f"expected a NetworkDetector or a ClosedFormDetector, found {type(detector).__name__}")
    _check(detector, train, run)
    detector.initialise(run.settings.seed)
    detector.prepare(train)
    if not run.resume:
        for name in (LAST_CHECKPOINT, BEST_WEIGHTS):
            (run.folder / name).unlink(missing_ok=True)
    work = partial(_train, detector, train, tuple(validation))
    if run.devices == 1:
        work(run)
    else:
        run_processes(work, run)
    detector.to("cpu").load_state_dict(read_weights(run.folder / BEST_WEIGHTS))
    detector.requires_grad_().eval()
    diagnostics = detector.diagnostics(diagnostic_batches(TrainingStep(detector, run.settings), train))
    return _report(detector, train, run, bool(validation), diagnostics)


def _check(detector: NetworkDetector, train: VolumeSource, run: FitRun) -> None:
    """Refuse what cannot be trained before anything is changed or other processes start."""
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
    if run.compile and not detector.compiles:
        raise TrainingError(
            "found a loss that contains a gradient (the penalty of wgan-gp), which torch cannot compile; train "
            "without --compile, or with another model.objective"
        )
    detector.check(train)
    find_devices(run.device, run.devices)


def _train(detector: NetworkDetector, train: VolumeSource, validation: Sequence[PlantedScan], run: FitRun) -> None:
    """Train a copy, in the only process or in one of several; the result is in the folder of the run."""
    settings = run.settings
    with _quiet(), _memory_errors(settings), matmul_precision(settings.precision, on_gpu(run.device)):
        TrainingLoop(make_fabric(run), copy_for_device(detector, run), train, validation, run).train()


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
    """Silence the warnings listed above."""
    with warnings.catch_warnings():
        for message in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield
