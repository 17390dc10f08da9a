"""Files of a training: the checkpoint that it continues from, and the best weights so far."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.files import atomic_path

BEST_WEIGHTS = "best.safetensors"
LAST_CHECKPOINT = "last.ckpt"
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnpicklingError)


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; an interrupted write leaves the earlier one."""
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, and compare its contents with their checksums.

    Raises
    ------
    TrainingError
        If the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
        if altered is not None:
            raise zipfile.BadZipFile(f"the checksum of {altered} is wrong")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _DAMAGE as error:
        found = str(error).partition("\n")[0]
        raise TrainingError(
            f"{path} is damaged ({found}): expected a whole checkpoint; delete it to start anew"
        ) from error
    return checkpoint


def save_weights(detector: nn.Module, path: Path) -> None:
    """Write the state of a detector as safetensors; an interrupted write leaves the earlier file."""
    state = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in detector.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights that a training kept.

    Raises
    ------
    TrainingError
        If the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise TrainingError(
            f"{path} is missing or damaged ({error}): expected the best weights so far; delete "
            f"{path.with_name(LAST_CHECKPOINT)}, too, to start anew"
        ) from error
