from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from anomaly.core.errors import TrainingError
from anomaly.training.checkpoint import read_checkpoint, read_weights, save_checkpoint, save_weights


def empty(content: bytes) -> bytes:
    return b""


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def altered(content: bytes) -> bytes:
    """Return the content with one other bit, among the numbers."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


def another_archive(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("notes.txt", "no checkpoint")
    return stream.getvalue()


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    weights = torch.arange(1000.0)
    save_checkpoint({"detector": {"weights": weights}, "state": {"step": 3}}, tmp_path / "last.ckpt")
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(checkpoint["detector"]["weights"], weights)
    assert checkpoint["state"] == {"step": 3}


@pytest.mark.parametrize("damage", [empty, cut, altered, zeros, another_archive])
def test_a_damaged_checkpoint_is_refused_with_a_remedy(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint({"weights": torch.arange(1000.0)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainingError, match=r"last\.ckpt is damaged \(.+\).*delete it to start anew"):
        read_checkpoint(path)


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"network": nn.Linear(1, 1)}, tmp_path / "last.ckpt")
    with pytest.raises(TrainingError, match=r"last\.ckpt is damaged"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    network = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_weights(network, tmp_path / "best.safetensors")
    weights = read_weights(tmp_path / "best.safetensors")
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("damage", [empty, cut, zeros])
def test_damaged_weights_are_refused_with_a_remedy(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(nn.Linear(30, 30), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainingError, match=r"best\.safetensors is missing or damaged.*last\.ckpt, too"):
        read_weights(path)


def test_missing_weights_are_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"best\.safetensors is missing or damaged"):
        read_weights(tmp_path / "best.safetensors")
