"""One training step: prepare a batch, and compute the loss of the part that is trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from anomaly.models.base import NetworkDetector, StepInfo
from anomaly.training.augment import augment
from anomaly.training.batches import Batch
from anomaly.training.settings import TrainingSettings

AUGMENTATION_STREAM, LOSS_STREAM = 1, 2  # random streams of one batch


class TrainingStep(nn.Module):
    """Computes losses of a detector.

    Parameters
    ----------
    detector
        The model to train.
    settings
        The training settings.
    mixed_precision
        Whether the loss is computed in bfloat16 where torch's autocast allows it.
    rank
        Number of this process among several that train together.
    """

    def __init__(
        self, detector: NetworkDetector, settings: TrainingSettings, mixed_precision: bool = False, rank: int = 0
    ) -> None:
        super().__init__()
        self.detector = detector
        self.settings = settings
        self.mixed_precision = mixed_precision
        self.rank = rank

    @property
    def device(self) -> torch.device:
        """Where the detector is."""
        return next(self.detector.parameters()).device

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Augment and corrupt a batch on its device: ahead of its step on a CPU, within it on a GPU.

        Always in float32: in bfloat16, sampling positions would be off by a voxel.
        """
        rng = self._generator(batch.number, AUGMENTATION_STREAM)
        with torch.autocast(self.device.type, enabled=False):
            images, mask = augment(batch.images, batch.mask, self.detector.view, self.settings.augmentation, rng)
            corrupted = self.detector.corrupt(images, mask, rng)
        return batch._replace(images=images, mask=mask, corrupted=corrupted)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a batch by name, of the part that its step trains; ``"loss"`` is minimised."""
        prepared = self.prepare(batch) if batch.corrupted is None else batch
        step, steps = prepared.number // self.settings.accumulate, self.settings.steps
        self.detector.requires_grad_(requires_grad=False)
        self.detector.trainable_part(step, steps).requires_grad_()
        info = StepInfo(step, steps, self._generator(prepared.number, LOSS_STREAM), prepared.covariates)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision):
            return self.detector.loss(prepared.images, prepared.mask, info, *(prepared.corrupted or ()))

    def _generator(self, number: int, stream: int) -> torch.Generator:
        """Return the random numbers of one batch: they depend on seed, rank and batch number only."""
        sequence = np.random.SeedSequence([self.settings.seed, self.rank, number, stream])
        words = sequence.generate_state(2, np.uint32)
        seed = (int(words[0]) << 31) ^ int(words[1])
        return torch.Generator(device=self.device).manual_seed(seed)
