from __future__ import annotations

import pytest
import torch
from torch import nn

from anomaly.core.errors import TrainingError
from anomaly.training.gradient_monitor import (
    GPU_CHECK_EVERY_STEPS,
    MAX_OVERFLOWS,
    MIN_NORMS,
    GradientHistory,
    GradientMonitor,
)
from anomaly.training.settings import TrainingSettings

INFINITE = torch.tensor(float("inf"))


def monitor(gpu: bool = False, mixed: bool = False) -> GradientMonitor:
    return GradientMonitor(TrainingSettings(), gpu, mixed)


def test_a_few_huge_gradients_are_rare_batches_and_a_series_is_reported_once() -> None:
    history, usual = GradientHistory(), [1.0, 1.2, 0.8] * 10
    assert not any(history.explodes(norm) for norm in [*usual, 1e6, 1.0, *[1e6] * 4, 1.0])
    assert [history.explodes(1e6) for _ in range(6)] == [False] * 4 + [True, False]
    assert history.median_norm == 1.0


def test_before_enough_norms_nothing_explodes() -> None:
    history = GradientHistory()
    assert not any(history.explodes(norm) for norm in [1.0] * (MIN_NORMS - 6) + [1e9] * 5)


def test_a_loss_that_is_not_finite_is_refused_with_its_name_and_step() -> None:
    with pytest.raises(TrainingError, match=r"at step 7: loss = nan"):
        monitor().check_losses(nn.Linear(1, 1), {"loss": torch.tensor(float("nan"))}, 7)


def test_an_overflow_is_refused_at_once_in_float32_and_after_a_series_in_mixed_precision() -> None:
    part = nn.Linear(1, 1)
    with pytest.raises(TrainingError, match="gradient norm = inf"):
        monitor().explodes(part, INFINITE, 0)
    mixed = monitor(mixed=True)
    for step in range(MAX_OVERFLOWS):
        mixed.explodes(part, INFINITE, step)
    with pytest.raises(TrainingError, match="gradient norm = inf"):
        mixed.explodes(part, INFINITE, MAX_OVERFLOWS)


def test_on_a_gpu_only_some_steps_of_each_part_are_checked() -> None:
    part, on_gpu = nn.Linear(1, 1), monitor(gpu=True)
    checked = []
    for step in range(2 * GPU_CHECK_EVERY_STEPS):
        checked.append(on_gpu.checks(part))
        on_gpu.explodes(part, torch.tensor(1.0), step)
    assert [step for step, done in enumerate(checked) if done] == [0, GPU_CHECK_EVERY_STEPS]
