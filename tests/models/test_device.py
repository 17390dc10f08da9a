from __future__ import annotations

import pytest
import torch

from anomaly.core.errors import TrainingError
from anomaly.models.device import choose_device, find_devices, on_gpu


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, count: int, device: str) -> None:
    with_gpus(monkeypatch, count)
    assert choose_device("auto") == device
    assert on_gpu("auto") == (count > 0)
    assert choose_device("cpu") == "cpu"
    assert not on_gpu("cpu")


def test_one_gpu_of_several_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 3)
    assert choose_device("cuda:2") == "cuda:2"
    assert find_devices("cuda:2") == ("gpu", [2])
    assert find_devices("cuda", 2) == ("gpu", [0, 1])


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(TrainingError, match="unknown device"):
        choose_device(device)


@pytest.mark.parametrize(("found", "device", "count"), [(0, "cuda", 1), (1, "cuda:1", 1), (1, "auto", 2)])
def test_missing_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, found: int, device: str, count: int) -> None:
    with_gpus(monkeypatch, found)
    with pytest.raises(TrainingError, match=r"found (no|\d) CUDA device"):
        find_devices(device, count)
