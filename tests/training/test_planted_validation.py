from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.models.base import ClosedFormDetector, Evidence, ModelSettings, target_slice
from anomaly.training.planted_validation import planted_precision, standardised_residuals
from tests.models.factories import GRID, planted_scan


class ConstantSettings(ModelSettings):
    family: str = "constant"


class Constant(ClosedFormDetector):
    """Its residual is the image minus a constant, or noise that does not depend on the image."""

    family: ClassVar[str] = "constant"
    Settings: ClassVar[type[ModelSettings]] = ConstantSettings

    def __init__(self, blind: bool = False) -> None:
        super().__init__(ConstantSettings(view=ImageView(kind="volume")), GRID)
        self.register_buffer("constant", torch.tensor(0.7))
        self.blind = blind

    def fit_closed_form(self, train: VolumeSource) -> None:
        raise NotImplementedError

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        shown = target_slice(images)
        if self.blind:
            shown = torch.rand(shown.shape, generator=torch.Generator().manual_seed(0))
        return Evidence({"residual": (shown - self.constant) * mask}, shown)


def test_a_model_that_sees_lesions_scores_above_one_that_does_not() -> None:
    scans = [planted_scan(seed, loss=0.9) for seed in range(2)]
    seeing, blind = planted_precision(Constant(), scans), planted_precision(Constant(blind=True), scans)
    assert blind < 0.1 < seeing <= 1


def test_with_enough_scans_places_that_are_always_wrong_do_not_count() -> None:
    scans = [planted_scan(seed) for seed in range(6)]
    wrong = np.zeros(GRID.shape, dtype=np.float32)
    wrong[2:6, 5:9, 4:8] = 5
    disturbed = [replace(scan, voxels=scan.voxels + wrong * scan.mask) for scan in scans]
    few = planted_precision(Constant(), disturbed[:2])
    many = planted_precision(Constant(), disturbed)
    assert many > few + 0.2


def test_standardised_healthy_residuals_have_mean_zero() -> None:
    rng = np.random.default_rng(0)
    scans = [planted_scan(seed) for seed in range(8)]
    healthy = [replace(scan, mask=np.ones(GRID.shape, dtype=bool), lesion=np.zeros(GRID.shape, dtype=bool))
               for scan in scans]  # fmt: skip
    values = [rng.normal(3, 2, GRID.shape).astype(np.float32) for _ in scans]
    result = np.stack(standardised_residuals(Constant(), values, healthy))
    assert abs(result.mean()) < 1e-4
    assert 0.4 < result.std() < 1
