"""The one place that builds a lightning Trainer."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file
from torch import Tensor, nn

from anomaly.core.views import VolumeSource
from anomaly.training.callbacks import (
    BEST,
    LAST,
    AveragedWeights,
    HealthCheck,
    LastCheckpoint,
    PlantedValidation,
    Progress,
)
from anomaly.training.module import LearnerModule
from anomaly.training.protocols import Health, LabelledScan, Learner, Outcome, Run
from anomaly.training.settings import TrainingSettings
from anomaly.training.stream import Batch, ImageStream, StepLoader

FAR = 2**31  # number of a batch that no training comes to
_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}
_SILENCED = (
    r".*does not have many workers.*",  # batches are cut from memory maps by threads of our own
    r".*The number of training batches.*is smaller than the logging interval.*",  # we log by ourselves
    r".*Experiment logs directory .* exists and is not empty.*",  # a resumed training adds to its logs
    r".*LeafSpec.* is deprecated.*",  # of torch, used inside lightning
    r".*GPU available but not used.*",  # the caller chose the device
)


def train(
    learner: Learner,
    source: VolumeSource,
    validation: Sequence[LabelledScan],
    settings: TrainingSettings,
    run: Run,
    fingerprint: str,
) -> Outcome:
    """Train a learner in place; afterwards it holds the best weights, on the CPU, in ``eval`` mode.

    Parameters
    ----------
    learner
        The model.
    source
        Healthy volumes to learn from.
    validation
        Scans with planted lesions that choose the weights to keep; may be empty.
    settings
        The recipe.
    run
        Folder, device, whether to resume, and whom to tell about progress. The folder afterwards holds
        ``last.ckpt`` (to continue from), ``best.safetensors`` (the weights kept) and ``logs/``.
    fingerprint
        Of everything a resumed training must share with the one it continues.

    Raises
    ------
    TrainingError
        If a loss or gradient is not finite, or the folder holds another training.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    module = LearnerModule(learner, settings, fingerprint).train()
    weights = AveragedWeights(settings.ema_decay)
    chosen = PlantedValidation(weights, validation, run.folder, settings.patience)
    health = HealthCheck(weights, partial(fresh_batches, module, source))
    with quiet():
        trainer = _trainer(settings, run, [weights, chosen, health, LastCheckpoint(run.folder),
                                           Progress(settings.steps, run.progress)])  # fmt: skip
        stream = ImageStream(source, learner.view, settings.batch_size, settings.seed, trainer.global_rank)
        length = settings.validate_every * settings.accumulate
        loader: StepLoader[Any] = StepLoader(
            stream.batch if _on_gpu(run) else lambda step: module.ready(stream.batch(step)),
            first=lambda: module.batches_done,
            length=length,
            threads=settings.num_workers,
        )
        trainer.fit(module, loader, ckpt_path=_checkpoint(run), weights_only=True)
    _keep_best(learner, run.folder)
    return _outcome(trainer, chosen, module.seconds, learner.health(fresh_batches(module, source)))


def _trainer(settings: TrainingSettings, run: Run, callbacks: list[Any]) -> Trainer:
    return Trainer(
        accelerator=_ACCELERATORS[run.device],
        devices=run.devices,
        strategy="auto",
        precision="bf16-mixed" if in_bfloat16(settings.precision, _on_gpu(run)) else "32-true",
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


def _on_gpu(run: Run) -> bool:
    return run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available())


def in_bfloat16(precision: str, on_gpu: bool) -> bool:
    """Return whether a precision of the settings means mixed bfloat16 on this machine."""
    if precision in ("bf16", "32"):
        return precision == "bf16"
    if on_gpu:
        return True
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return precision == "native" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _loggers(folder: Path) -> list[Any]:
    csv = CSVLogger(folder, name="logs", flush_logs_every_n_steps=1)  # a killed training keeps its log
    return [csv, TensorBoardLogger(folder, name="logs", version=csv.version)]


def _checkpoint(run: Run) -> Path | None:
    path = run.folder / LAST
    return path if run.resume and path.is_file() else None


def _keep_best(learner: Learner, folder: Path) -> None:
    assert isinstance(learner, nn.Module)  # noqa: S101 - a Protocol cannot say that it is a module
    learner.to("cpu")
    learner.load_state_dict(load_file(folder / BEST))
    learner.requires_grad_().eval()  # parts may have taken turns


def fresh_batches(module: LearnerModule, source: VolumeSource) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, masks and covariates of batches that no training comes to, the same each time."""
    stream = ImageStream(source, module.learner.view, module.settings.batch_size, module.settings.seed)
    for number in itertools.count(FAR):
        images, mask, covariates = (tensor.to(module.device) for tensor in stream.batch(number)[1:])
        ready = module.ready(Batch(number, images, mask, covariates))
        yield ready.images, ready.mask, ready.covariates


def _outcome(trainer: Trainer, chosen: PlantedValidation, seconds: float, health: Health) -> Outcome:
    numbers = {"best_step": float(chosen.best_step), **health.numbers}
    notes = list(health.warnings)
    if chosen.scans:
        numbers["planted_ap"] = chosen.best
    else:
        notes.append("no validation scans: the last weights were kept, not the best")
    if chosen.stopped:
        notes.append(f"stopped early at step {trainer.global_step}: validation no longer improved")
    return Outcome(trainer.global_step, seconds, numbers, tuple(notes))


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
