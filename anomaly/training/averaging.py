"""Exponential moving average (EMA) of the weights: what is validated and kept."""

from __future__ import annotations

import copy

import torch

from anomaly.models.base import NetworkDetector
from anomaly.models.components.ema import ema_update


class AveragedWeights:
    """A copy of a detector whose weights follow an exponential moving average.

    The decay rises with the steps taken, min(decay, (1 + n) / (10 + n)), so that the first weights do not dominate
    short trainings. Buffers are those of the detector.

    Attributes
    ----------
    detector
        The averaged copy, in ``eval`` mode.
    updates
        Number of averaged optimiser steps.
    """

    def __init__(self, detector: NetworkDetector, decay: float, device: torch.device) -> None:
        self.detector = copy.deepcopy(detector).requires_grad_(requires_grad=False).to(device).eval()
        self.decay = decay
        self.updates = 0

    def update(self, detector: NetworkDetector) -> None:
        """Move the average towards the current weights."""
        self.updates += 1
        ema_update(self.detector, detector, self.decay, self.updates)

    @torch.no_grad()
    def copy_buffers(self, detector: NetworkDetector) -> None:
        """Copy the buffers; once per validation, because copying at every step would cost too much."""
        for kept, buffer in zip(self.detector.buffers(), detector.buffers(), strict=True):
            kept.copy_(buffer)
