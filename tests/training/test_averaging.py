from __future__ import annotations

import torch

from anomaly.training.averaging import AveragedWeights
from tests.training.test_fit import new

CPU = torch.device("cpu")


def test_the_average_of_weights_that_do_not_change_is_those_weights() -> None:
    detector = new()
    average = AveragedWeights(detector, 0.9, CPU)
    average.update(detector)
    for kept, current in zip(average.detector.parameters(), detector.parameters(), strict=True):
        torch.testing.assert_close(kept, current)


def test_the_decay_rises_to_its_limit_so_that_first_weights_do_not_dominate() -> None:
    detector = new()
    average = AveragedWeights(detector, 0.5, CPU)
    weight, kept = next(detector.parameters()), next(average.detector.parameters())
    with torch.no_grad():
        weight.fill_(1.0)
        kept.fill_(0.0)
    expected = 0.0
    for step in range(1, 12):
        average.update(detector)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay)
        torch.testing.assert_close(kept, torch.full_like(kept, expected))
    assert expected > 0.99


def test_the_average_does_not_learn_and_is_in_eval_mode() -> None:
    average = AveragedWeights(new().train(), 0.9, CPU)
    assert not average.detector.training
    assert not any(parameter.requires_grad for parameter in average.detector.parameters())
