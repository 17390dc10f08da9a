"""One training step, as lightning wants it."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.models.base import StepInfo
from anomaly.models.components.network import NetworkDetector
from anomaly.training.augment import augment
from anomaly.training.batches import Batch
from anomaly.training.gradient_monitor import GradientMonitor
from anomaly.training.settings import TrainingSettings

GPU_CHECK_EVERY = 10  # reading a number from the GPU waits for it, so it is not done at every step of a part
TOLERATED = 3  # checked steps of a part in a row whose gradient overflows

_log = logging.getLogger(__name__)


class ReadyBatch(NamedTuple):
    """A batch as the loss takes it: images and mask augmented, ``corrupted`` what the detector made of them."""

    number: int
    images: Tensor
    mask: Tensor
    covariates: Tensor
    corrupted: tuple[Tensor, ...]


class TrainingModule(LightningModule):
    """A detector with its optimiser; knows nothing of how images are scored.

    Parameters
    ----------
    detector
        The model to train.
    settings
        The recipe of the training.
    fingerprint
        Of everything a resumed training must share with the one it continues.
    """

    def __init__(self, detector: NetworkDetector, settings: TrainingSettings, settings_hash: str) -> None:
        super().__init__()
        self.detector = detector
        self.settings = settings
        self.settings_hash = settings_hash
        self.batches_done = 0
        self._began, self._seconds_before = time.monotonic(), 0.0
        self.latest: dict[str, Tensor] = {}
        self._learning: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no part of the state
        self.explosions: list[int] = []
        self._turns: Counter[nn.Module] = Counter()  # steps of each part
        self._overflows: Counter[nn.Module] = Counter()  # of each part, in a row
        self._watches: dict[nn.Module, GradientMonitor] = {}

    @torch.no_grad()
    def ready(self, batch: Batch) -> ReadyBatch:
        """Augment and corrupt a batch where it lies: ahead of its step on a CPU, within it on a GPU.

        In float32 there too: in bfloat16 the places that voxels move to would be off by a voxel.
        """
        number, images, mask, covariates = batch
        rng = self._generator(number, 1)
        with torch.autocast(self.device.type, enabled=False):
            images, mask = augment(images, mask, self.detector.view, self.settings.augmentation, rng)
            return ReadyBatch(number, images, mask, covariates, self.detector.corrupt(images, mask, rng))

    def training_step(self, batch: Batch | ReadyBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        del batch_idx  # starts anew at every validation; the batch knows its own number
        ready = batch if isinstance(batch, ReadyBatch) else self.ready(batch)
        number, images, mask, covariates, corrupted = ready
        step, steps = number // self.settings.accumulate, self.settings.steps
        at = StepInfo(step, steps, self._generator(number, 2), covariates)
        self._let_learn(self.detector.trainable_part(step, steps))
        losses = self.detector.loss(images, mask, at, *corrupted)
        values = {name: value.detach() for name, value in losses.items()}
        self.latest |= values  # those of players that take turns stay until their next
        if self._checks():
            self._refuse_non_finite(values, at.step)
        self.batches_done = number + 1
        return losses["loss"]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient by its L2 norm; one that is not finite does not reach the weights."""
        del gradient_clip_val, gradient_clip_algorithm  # lightning's own way, not used
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), self.settings.gradient_clip)
        self.latest["gradient_norm"] = norm.detach()
        # What torch's gradient scaler tells a fused optimiser: whether to leave out the step. Nothing waits for it.
        optimizer.found_inf = (~norm.isfinite()).float()
        if self._checks():
            self._watch(norm)
        self._turns[self._learning[0]] += 1

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with a linear warm-up and a cosine to zero (Loshchilov & Hutter 2017, 2019)."""
        settings = self.settings
        parameters = self.detector.parameters()
        optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.learning_rate,
            betas=self.detector.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, settings))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed training needs beside the weights."""
        checkpoint["anomaly"] = {
            "batches_done": self.batches_done,
            "fingerprint": self.settings_hash,
            "devices": self.trainer.world_size,
            "seconds": self.seconds,
            "explosions": self.explosions,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue a training that had other settings or other scans."""
        saved = checkpoint.get("anomaly", {})
        if saved.get("fingerprint") != self.settings_hash:
            raise TrainingError(
                "the working folder holds a checkpoint of a training with other settings or another number of "
                "scans, which this one cannot continue; give another folder, or start anew without resuming"
            )
        if saved.get("devices", 1) != self.trainer.world_size:
            raise TrainingError(
                f"the working folder holds a checkpoint of a training on {saved['devices']} device(s), which "
                f"{self.trainer.world_size} cannot continue: each adds batches of its own to every step. Give "
                f"--devices {saved['devices']}, or another folder"
            )
        self.batches_done = int(saved["batches_done"])
        self._seconds_before = float(saved["seconds"])
        self.explosions = list(saved.get("explosions", ()))
        _begin_an_epoch(checkpoint["loops"]["fit_loop"])

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, that of the runs it continues included."""
        return self._seconds_before + time.monotonic() - self._began

    def _let_learn(self, part: nn.Module) -> None:
        """Have gradients for one part alone; from one step to the next it is mostly the same."""
        if self._learning == (part,):
            return
        self._learning = (part,)
        chosen = {id(parameter) for parameter in part.parameters()}
        for parameter in self.detector.parameters():
            parameter.requires_grad_(id(parameter) in chosen)

    def _generator(self, number: int, purpose: int) -> torch.Generator:
        sequence = np.random.SeedSequence([self.settings.seed, self.global_rank, number, purpose])
        words = sequence.generate_state(2, np.uint32)
        seed = (int(words[0]) << 31) ^ int(words[1])
        return torch.Generator(device=self.device).manual_seed(seed)

    def _checks(self) -> bool:
        """Return whether the numbers of this step are looked at."""
        return bool(self.device.type == "cpu") or self._turns[self._learning[0]] % GPU_CHECK_EVERY == 0

    def _watch(self, norm: Tensor) -> None:
        """Warn of a series of gradients that are huge beside those that the same part had before.

        In mixed precision a rare overflow is nothing to worry about; a series is refused.
        """
        part = self._learning[0]
        self._overflows[part] = 0 if norm.isfinite() else self._overflows[part] + 1
        if self._overflows[part]:
            if self._overflows[part] > TOLERATED or not self.trainer.precision.startswith("bf16"):
                self._refuse_non_finite({"gradient norm": norm}, self.global_step)
            return
        watch = self._watches.setdefault(part, GradientMonitor())
        if watch.explodes(float(norm)):
            self.explosions.append(self.global_step)
            if self.global_rank == 0:
                _log.warning(
                    "step %d: the gradient explodes: norm %.3g, usually %.3g; lower training.learning_rate",
                    self.global_step,
                    norm,
                    watch.usual,
                )

    def _refuse_non_finite(self, values: dict[str, Tensor], step: int) -> None:
        wrong = {name: float(value) for name, value in values.items() if not math.isfinite(float(value))}
        if wrong:
            found = ", ".join(f"{name} = {value}" for name, value in wrong.items())
            raise TrainingError(
                f"training went wrong at step {step}: {found}; expected finite numbers. Lower "
                f"training.learning_rate (now {self.settings.learning_rate:g}) or training.gradient_clip (now "
                f"{self.settings.gradient_clip:g}), and check the intensities of the cohort. The last good "
                "weights and checkpoint are kept in the working folder"
            )


def _begin_an_epoch(loop: dict[str, Any]) -> None:
    """Have a resumed training begin the epoch after the one that the checkpoint ended.

    Lightning notes that the epoch was about to end, and without a validation loop of its own it would end it anew
    after one more batch: from then on everything that happens at the end of an epoch would happen a batch late.
    """
    for counts in loop["epoch_progress"].values():
        counts["completed"] = counts["processed"]
    batches = loop["epoch_loop.batch_progress"]
    batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}


def learning_rate_share(step: int, settings: TrainingSettings) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, then half a cosine."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
