"""The one place that builds a lightning Trainer."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file
from torch import Tensor, nn

from anomaly.cohort.synthetic import PlantedScan
from anomaly.core.errors import TrainingError
from anomaly.core.files import sha256_of_json
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import ClosedFormDetector, Detector, Diagnostics
from anomaly.models.components.network import NetworkDetector
from anomaly.models.device import find_devices, on_gpu
from anomaly.training.batches import Batch, ImageBatches, StepLoader
from anomaly.training.callbacks import (
    BEST,
    LAST,
    AveragedWeights,
    DiagnosticsCallback,
    LastCheckpoint,
    PlantedValidation,
    Progress,
)
from anomaly.training.distributed import Report, run_together
from anomaly.training.hardware import GPU_THREADS, in_bfloat16, matmul_precision, prepared_for_device
from anomaly.training.module import TrainingModule
from anomaly.training.run import FitReport, FitRun
from anomaly.training.settings import TrainingSettings

MIN_TRAINING_SCANS = 2
FIRST_UNSEEN_BATCH = 2**31  # number of a batch that no training comes to
_SILENCED = (
    r".*does not have many workers.*",  # batches are cut from memory maps by threads of our own
    r".*The number of training batches.*is smaller than the logging interval.*",  # we log by ourselves
    r".*Experiment logs directory .* exists and is not empty.*",  # a resumed training adds to its logs
    r".*LeafSpec.* is deprecated.*",  # of torch, used inside lightning
    r".*GPU available but not used.*",  # the caller chose the device
    r".*Grad strides do not match bucket view strides.*",  # of the critics of two processes; costs a copy
)
LONGEST_WAIT = timedelta(hours=6)  # of the other processes, while the first validates


def fit(
    detector: Detector, train: VolumeSource, validation: Sequence[PlantedScan] = (), run: FitRun | None = None
) -> FitReport:
    """Train any detector in place, on healthy volumes only; afterwards it is on the CPU, in ``eval`` mode.

    Parameters
    ----------
    detector
        The model. Networks are trained by gradient descent, other families in closed form.
    train
        Healthy volumes to learn from.
    validation
        Healthy scans with planted lesions. They select the weights of a network and are never learnt from; without
        them the last weights are kept.
    run
        Recipe, seed, folder, device and progress. A network's folder afterwards holds ``last.ckpt`` (to continue
        from), ``best.safetensors`` (the selected weights) and ``logs/``. Closed-form families need none.

    Raises
    ------
    TrainingError
        If there are too few scans, they lie on another grid, a loss or gradient is not finite, memory or devices
        are missing, or the folder holds another training or a damaged checkpoint.
    """
    if isinstance(detector, ClosedFormDetector):
        started = time.monotonic()
        detector.fit_closed_form(train)
        detector.eval()
        return FitReport(n_scans=len(train), seconds=time.monotonic() - started)
    if not isinstance(detector, NetworkDetector) or run is None:
        raise TrainingError(f"family {detector.family!r}: expected a network and a run with a working folder")
    check_training_scans(detector, train)
    detector.initialise(run.settings.seed)
    detector.prepare(train)
    return train_network(detector, train, validation, run)


def check_training_scans(detector: NetworkDetector, train: VolumeSource) -> None:
    """Raise TrainingError if a network cannot be trained on these volumes."""
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


def train_network(
    detector: NetworkDetector, source: VolumeSource, validation: Sequence[PlantedScan], run: FitRun
) -> FitReport:
    """Train a network that has been initialised and prepared; see :func:`fit`."""
    find_devices(run.device, run.devices)  # before other processes start
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.resume:
        for name in (LAST, BEST):
            (run.folder / name).unlink(missing_ok=True)
    settings = run.settings
    settings_hash = hash_of_settings(detector, source, settings)
    silent = replace(run, progress=None)  # a function of the caller cannot go to another process
    work = partial(_fit, detector, source, tuple(validation), settings, silent, settings_hash)
    if run.devices == 1:
        work(run.progress)
    else:
        run_together(work, run.devices, run.progress)
    _keep_best(detector, run.folder)
    diagnostics = detector.diagnostics(fresh_batches(TrainingModule(detector, settings, settings_hash), source))
    return _report(run.folder, detector, len(source), bool(validation), diagnostics)


def hash_of_settings(detector: NetworkDetector, source: VolumeSource, settings: TrainingSettings) -> str:
    """Return a hash of everything that a resumed training must share with the one it continues."""
    model = detector.settings.model_dump(mode="json")
    return sha256_of_json([model, settings.model_dump(mode="json"), len(source), detector.grid.affine])


def _fit(
    detector: NetworkDetector,
    source: VolumeSource,
    validation: Sequence[PlantedScan],
    settings: TrainingSettings,
    run: FitRun,
    settings_hash: str,
    progress: Report | None,
) -> None:
    """Train, in the only process or in one of several; what was learnt is in the folder afterwards."""
    gpu = on_gpu(run.device)
    detector = prepared_for_device(detector, run, partial(losses_of_every_turn, source, settings))
    module = TrainingModule(detector, settings, settings_hash).train().requires_grad_()
    weights = AveragedWeights(settings.ema_decay)
    chosen = PlantedValidation(weights, validation, run.folder, settings.patience)
    diagnostics = DiagnosticsCallback(weights, partial(fresh_batches, module, source))
    with quiet():
        trainer = _trainer(settings, run, [weights, chosen, diagnostics, LastCheckpoint(run.folder),
                                           Progress(settings.steps, progress)])  # fmt: skip
        stream = ImageBatches(
            source, detector.view, settings.batch_size, settings.seed, trainer.global_rank, pinned=gpu
        )
        loader: StepLoader[Any] = StepLoader(
            stream.batch if gpu else lambda step: module.ready(stream.batch(step)),
            first=lambda: module.batches_done,
            length=settings.validate_every * settings.accumulate,
            threads=max(settings.num_workers, GPU_THREADS if gpu else 0),
        )
        with _explained(settings), matmul_precision(settings.precision, gpu):
            trainer.fit(module, loader, ckpt_path=_checkpoint(run), weights_only=True)


def _trainer(settings: TrainingSettings, run: FitRun, callbacks: list[Any]) -> Trainer:
    accelerator, devices = find_devices(run.device, run.devices)
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        **({} if run.devices == 1 else _together()),
        precision="bf16-mixed" if in_bfloat16(settings.precision, on_gpu(run.device)) else "32-true",
        max_steps=settings.steps,
        accumulate_grad_batches=settings.accumulate,
        callbacks=callbacks,
        logger=_loggers(run.folder),
        default_root_dir=run.folder,
        enable_checkpointing=False,  # LastCheckpoint and PlantedValidation write whole files at one moment
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        use_distributed_sampler=False,  # the stream gives every process its own batches
        num_sanity_val_steps=0,
    )


def _together() -> dict[str, Any]:
    """Return how one of several processes finds the others, whatever cluster it runs on."""
    # Parts of a model may take turns: what does not learn in a step has no gradient to wait for.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=LONGEST_WAIT)
    return {"strategy": strategy, "plugins": [LightningEnvironment()]}


def _loggers(folder: Path) -> list[Any]:
    csv = CSVLogger(folder, name="logs", flush_logs_every_n_steps=1)  # a killed training keeps its log
    return [csv, TensorBoardLogger(folder, name="logs", version=csv.version)]


def _checkpoint(run: FitRun) -> Path | None:
    path = run.folder / LAST
    if not run.resume or not path.is_file():
        return None
    if not zipfile.is_zipfile(path):  # what torch writes; its end is written last
        raise TrainingError(f"{path} is damaged: expected a whole checkpoint; delete it to start anew")
    return path


def _keep_best(detector: NetworkDetector, folder: Path) -> None:
    detector.to("cpu")
    detector.load_state_dict(load_file(folder / BEST))
    detector.requires_grad_().eval()  # parts may have taken turns


def fresh_batches(module: TrainingModule, source: VolumeSource) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, masks and covariates of batches that no training comes to, the same each time."""
    stream = ImageBatches(source, module.detector.view, module.settings.batch_size, module.settings.seed)
    for number in itertools.count(FIRST_UNSEEN_BATCH):
        images, mask, covariates = (tensor.to(module.device) for tensor in stream.batch(number)[1:])
        ready = module.ready(Batch(number, images, mask, covariates))
        yield ready.images, ready.mask, ready.covariates


def losses_of_every_turn(source: VolumeSource, settings: TrainingSettings, detector: Any) -> Iterator[Tensor]:
    """Yield a loss for each part of a detector that takes turns."""
    module = TrainingModule(detector, settings, "").train()
    batch = module.ready(ImageBatches(source, detector.view, settings.batch_size, settings.seed).batch(0))
    learnt: list[nn.Module] = []
    for step in range(settings.steps):
        part = detector.trainable_part(step, settings.steps)
        if not any(part is other for other in learnt):
            learnt.append(part)
            yield module.training_step(batch._replace(number=step * settings.accumulate), 0)


def _report(
    folder: Path, detector: NetworkDetector, n_scans: int, validated: bool, diagnostics: Diagnostics
) -> FitReport:
    """Return what the last checkpoint says, whichever process wrote it."""
    saved = torch.load(folder / LAST, map_location="cpu", weights_only=True, mmap=True)
    chosen, steps = saved["callbacks"][PlantedValidation.__name__], int(saved["global_step"])
    numbers = {"best_step": float(chosen["best_step"]), **diagnostics.numbers}
    notes = list(diagnostics.warnings)
    if validated:
        numbers["planted_ap"] = chosen["best"]
    else:
        notes.append("no validation scans: the last weights were kept, not the best")
    if chosen["stopped"]:
        notes.append(f"stopped early at step {steps}: validation no longer improved")
    explosions = saved["anomaly"]["explosions"]
    if explosions:
        notes.append(
            f"the gradient exploded {len(explosions)} time(s), first at step {explosions[0]}; lower "
            "training.learning_rate, and look at the curves in training/logs"
        )
    return FitReport(
        n_scans=n_scans,
        steps=steps,
        seconds=float(saved["anomaly"]["seconds"]),
        n_parameters=detector.n_parameters(),
        validation=numbers,
        notes=tuple(notes),
    )


@contextmanager
def _explained(settings: TrainingSettings) -> Iterator[None]:
    """Say what to do where memory is wanting; pass Ctrl-C on, where lightning would end the program."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device's memory does not hold a batch of {settings.batch_size} ({str(error).splitlines()[0]}); "
            "lower training.batch_size and raise training.accumulate as much"
        ) from error
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)  # lightning has switched it off


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lightning's own lines and the warnings listed above, for as long as it trains."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _SILENCED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
