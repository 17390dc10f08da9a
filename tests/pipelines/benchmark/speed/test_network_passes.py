from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly.core.image_views import ImageView
from anomaly.models.base import Evidence
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from pipelines.benchmark.speed.network_passes import network_passes
from tests.scoring.factory import Constant, Scans


class Steps(Constant):
    """Runs a denoiser several times for each batch, after one run of an encoder."""

    def __init__(self, steps: int) -> None:
        super().__init__(ImageView(kind="slice"))
        self.steps, self.encoder, self.denoiser = steps, torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        self.encoder(images)
        for _ in range(self.steps):
            self.denoiser(images)
        return super().evidence(images, mask)


@pytest.mark.parametrize(("steps", "flip", "expected"), [(1, False, 1), (7, False, 7), (7, True, 14)])
def test_every_step_of_the_most_used_network_counts(steps: int, flip: bool, expected: int) -> None:
    settings = ScoringSettings(batch_size=5, flip_average=flip)

    assert network_passes(Scorer(Steps(steps), settings), *Scans()[0]) == expected


class SideBySide(Steps):
    """Runs the denoiser once for three versions of each image."""

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        self.denoiser(torch.cat([images] * 3))
        return Constant.evidence(self, images, mask)


def test_several_versions_of_an_image_in_one_call_count_separately() -> None:
    assert network_passes(Scorer(SideBySide(1), ScoringSettings(batch_size=5)), *Scans()[0]) == 3


def test_a_model_without_a_network_takes_no_pass() -> None:
    assert network_passes(Scorer(Constant(), ScoringSettings()), *Scans()[0]) == 0
