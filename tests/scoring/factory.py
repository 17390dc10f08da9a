"""A detector whose answer is known: what it expects is one constant."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.models.base import ClosedFormDetector, Evidence, ModelSettings

SHAPE = (16, 18, 12)
GRID = Geometry(SHAPE, np.diag([4.0, 4.0, 4.0, 1.0]))


class ConstantSettings(ModelSettings):
    family: str = "constant"
    view: ImageView = ImageView(kind="slice")


class Constant(ClosedFormDetector):
    """Expects 1.0 everywhere."""

    family: ClassVar[str] = "constant"
    Settings: ClassVar[type[ModelSettings]] = ConstantSettings

    def __init__(self, view: ImageView | None = None) -> None:
        super().__init__(ConstantSettings(view=view or ImageView(kind="slice")), GRID)
        self.register_buffer("expected", torch.tensor(1.0))

    def fit_closed_form(self, train: VolumeSource) -> None:
        del train

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        middle = images[:, images.shape[1] // 2][:, None]
        expected = torch.ones_like(middle) * mask
        residual = (middle - 1.0) * mask
        return Evidence({"residual": residual}, expected, {"kl": residual.flatten(1).abs().mean(1)})


def ball(radius: float = 0.85) -> MaskArray:
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    return np.asarray(sum(axis**2 for axis in axes) < radius**2)


class Scans:
    """Healthy scans: one plus a pattern they share and noise of its own in each."""

    grid = GRID

    def __init__(self, n: int = 12, noise: float = 0.1) -> None:
        self.n, self.noise = n, noise
        self.pattern = np.random.default_rng(99).normal(0, 0.3, SHAPE).astype(np.float32)

    def __len__(self) -> int:
        return self.n

    def covariates(self, index: int) -> FloatArray:
        del index
        return UNKNOWN_COVARIATES

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        if index >= self.n:
            raise IndexError(index)
        mask = ball()
        noise = np.random.default_rng(index).normal(0, self.noise, SHAPE)
        return np.where(mask, 1 + self.pattern + noise, 0).astype(np.float32), mask
