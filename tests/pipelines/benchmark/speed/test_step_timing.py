from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from anomaly.models.ae import Autoencoder, AutoencoderSettings
from anomaly.models.base import StepInfo
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from pipelines.benchmark.speed.step_timing import StepCost, step_flop, step_overhead, step_seconds
from tests.models.factories import GRID, healthy_cohort


def test_a_step_is_timed_with_and_without_what_surrounds_the_network(tmp_path: Path) -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=4), GRID)
    settings = TrainingSettings(batch_size=2, num_workers=0)
    cost = step_overhead(detector, healthy_cohort(3), settings, tmp_path, steps=3, blocks=2)
    assert len(cost.full) == len(cost.bare) == 2
    assert min(cost.full + cost.bare) > 0
    assert list(tmp_path.iterdir()) == []
    assert "loss" not in vars(detector)


def test_the_ratio_is_that_of_neighbours_in_time() -> None:
    assert StepCost(full=(3.0, 6.0, 40.0), bare=(2.0, 4.0, 8.0)).ratio == 1.5


class OneConvolution(Autoencoder):
    """A 3 × 3 convolution from 1 to 4 channels, which does not learn in every second step."""

    def build(self) -> nn.Module:
        return nn.ModuleDict({"conv": nn.Conv2d(1, 4, 3, padding=1), "other": nn.Conv2d(1, 1, 1)})

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        return self.network["conv" if step % 2 else "other"]

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        part = self.network["conv" if step_info.step % 2 else "other"]
        return {"loss": part(images).square().mean()}


def test_operations_are_those_of_the_steps_that_are_timed() -> None:
    settings = TrainingSettings(batch_size=2)
    detector = OneConvolution(AutoencoderSettings(), GRID)
    voxels = 2 * GRID.shape[0] * GRID.shape[1]
    one, other = (2 * voxels * weights * 2 for weights in (4 * 9, 1))  # forward, and the gradient of the weights
    assert step_flop(detector, healthy_cohort(2), settings, "cpu", steps=2) == (one + other) / 2


@pytest.mark.parametrize("how", ["", "channels_last"])
def test_a_step_of_a_whole_training_is_timed(how: str, tmp_path: Path) -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=4), GRID)
    chosen: dict[str, Any] = {how: True} if how else {}
    run = FitRun(tmp_path / "run", device="cpu", resume=False, **chosen)
    assert 0 < step_seconds(detector, healthy_cohort(3), TrainingSettings(batch_size=2), run, steps=2) < 10
    assert not run.folder.exists()
    assert "loss" not in vars(detector)
