from __future__ import annotations

import pytest
import torch
from torch import nn

from anomaly.core.errors import TrainingError
from anomaly.training.gradient_monitor import (
    GPU_CHECK_EVERY,
    MAX_OVERFLOWS,
    MIN_NORMS,
    ExplosionDetector,
    GradientMonitor,
)
from anomaly.training.settings import TrainingSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
INFINITE = torch.tensor(float("inf"))


def monitor(device: torch.device = CPU, mixed: bool = False) -> GradientMonitor:
    return GradientMonitor(TrainingSettings(), device, mixed)


def test_a_few_huge_gradients_are_rare_batches_and_a_series_is_reported_once() -> None:
    detector, usual = ExplosionDetector(), [1.0, 1.2, 0.8] * 10
    assert not any(detector.explodes(norm) for norm in [*usual, 1e6, 1.0, *[1e6] * 4, 1.0])
    assert [detector.explodes(1e6) for _ in range(6)] == [False] * 4 + [True, False]
    assert detector.usual_norm == 1.0


def test_before_enough_norms_nothing_explodes() -> None:
    detector = ExplosionDetector()
    assert not any(detector.explodes(norm) for norm in [1.0] * (MIN_NORMS - 6) + [1e9] * 5)


def test_a_loss_that_is_not_finite_is_refused_with_its_name_and_step() -> None:
    with pytest.raises(TrainingError, match=r"at step 7: loss = nan"):
        monitor().check_losses(nn.Linear(1, 1), {"loss": torch.tensor(float("nan"))}, 7)


def test_an_overflow_is_refused_at_once_in_float32_and_after_a_series_in_mixed_precision() -> None:
    part = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match="gradient norm = inf"):
        monitor().check_norm(part, INFINITE, 0)
    mixed = monitor(mixed=True)
    for step in range(MAX_OVERFLOWS):
        mixed.check_norm(part, INFINITE, step)
    with pytest.raises(TrainingError, match="gradient norm = inf"):
        mixed.check_norm(part, INFINITE, MAX_OVERFLOWS)


def test_on_a_gpu_only_some_steps_of_each_part_are_checked() -> None:
    part, on_gpu = nn.Linear(1, 1), monitor(CUDA)
    checked = []
    for step in range(2 * GPU_CHECK_EVERY):
        checked.append(on_gpu.checks(part))
        on_gpu.check_norm(part, torch.tensor(1.0), step)
    assert [step for step, done in enumerate(checked) if done] == [0, GPU_CHECK_EVERY]
