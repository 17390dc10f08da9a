from __future__ import annotations

import pytest
import torch
from torch import nn

from anomaly.models.components.ema import ema_update


@pytest.mark.parametrize(("n_updates", "share"), [(0, 0.9), (80, 9 / 90), (10_000, 0.01)])
def test_the_decay_rises_from_a_tenth_to_its_limit(n_updates: int, share: float) -> None:
    average, current = nn.Linear(3, 3), nn.Linear(3, 3)
    before = average.weight.detach().clone()
    ema_update(average, current, 0.99, n_updates)
    torch.testing.assert_close(average.weight, torch.lerp(before, current.weight, share))


def test_the_current_weights_do_not_change() -> None:
    average, current = nn.Linear(3, 3), nn.Linear(3, 3)
    before = current.weight.detach().clone()
    ema_update(average, current, 0.99, 3)
    assert torch.equal(current.weight, before)


def test_a_decay_of_0_copies_the_weights() -> None:
    average, current = nn.Linear(3, 3), nn.Linear(3, 3)
    ema_update(average, current, 0.0, 3)
    torch.testing.assert_close(average.weight, current.weight)
