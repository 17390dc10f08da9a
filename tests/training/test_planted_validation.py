from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from anomaly.models.base import Evidence
from anomaly.training.planted_validation import planted_precision, residual_volume, standardised
from tests.models.factories import GRID, planted_scan


@dataclass
class Stub:
    """A "model" whose residual is the image minus a constant, or noise."""

    view: ImageView
    blind: bool = False

    def loss(self, *_: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def evidence_given(self, images: Tensor, mask: Tensor, covariates: Tensor) -> Evidence:
        assert covariates.shape == (len(images), 2)
        middle = images.shape[1] // 2
        target_slice = images[:, middle : middle + 1]
        if self.blind:
            target_slice = torch.rand(target_slice.shape, generator=torch.Generator().manual_seed(0))
        return Evidence({"residual": (target_slice - 0.7) * mask}, target_slice)


CPU = torch.device("cpu")


def test_images_are_put_back_where_they_were_cut() -> None:
    scan = planted_scan()
    for view in (
        ImageView(kind="slice", axis=1, neighbours=1),
        ImageView(kind="volume"),
        ImageView(kind="patch", size=(8, 8, 8)),
    ):
        residual = residual_volume(Stub(view), scan, CPU)
        assert np.allclose(residual[scan.mask], scan.voxels[scan.mask] - 0.7, atol=1e-5)


def test_a_model_that_sees_lesions_scores_above_one_that_does_not() -> None:
    scans = [planted_scan(seed, loss=0.9) for seed in range(2)]
    seeing = planted_precision(Stub(ImageView(kind="volume")), scans, CPU)
    blind = planted_precision(Stub(ImageView(kind="volume"), blind=True), scans, CPU)
    assert blind < 0.1 < seeing <= 1


def test_with_enough_scans_places_that_are_always_wrong_do_not_count() -> None:
    scans = [planted_scan(seed) for seed in range(6)]
    wrong = np.zeros(GRID.shape, dtype=np.float32)
    wrong[2:6, 5:9, 4:8] = 5
    disturbed = [replace(scan, voxels=scan.voxels + wrong * scan.mask) for scan in scans]
    few = planted_precision(Stub(ImageView(kind="volume")), disturbed[:2], CPU)
    many = planted_precision(Stub(ImageView(kind="volume")), disturbed, CPU)
    assert many > few + 0.2


def test_standardised_healthy_values_have_mean_zero() -> None:
    values = np.random.default_rng(0).normal(3, 2, (8, 6, 6, 6)).astype(np.float32)
    result = standardised(values, np.ones_like(values, dtype=bool))
    assert abs(result.mean()) < 1e-4
    assert 0.4 < result.std() < 1
