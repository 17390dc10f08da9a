"""Which processor or GPU a model runs on."""

from __future__ import annotations

import torch

from anomaly.core.errors import TrainingError

DEVICE_KINDS = ("auto", "cpu", "cuda")


def find_devices(device: str, count: int = 1) -> tuple[str, int | list[int]]:
    """Return the accelerator and the devices, in the terms of lightning, for ``count`` devices of a kind.

    Parameters
    ----------
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    TrainingError
        If there is no such device, or there are too few.
    """
    kind, _, number = device.partition(":")
    if kind not in DEVICE_KINDS or (number and not (kind == "cuda" and number.isdecimal())):
        raise TrainingError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N")
    if not on_gpu(device):
        if kind == "cuda":
            raise TrainingError(f"found no CUDA device for {device!r}; give --device cpu, or check the driver")
        return "cpu", count
    found = torch.cuda.device_count()
    chosen = [int(number)] if number else list(range(count))
    if len(chosen) != count or max(chosen) >= found:
        raise TrainingError(
            f"found {found} CUDA device(s); expected {count} from {device!r}: give --device cuda with "
            "--devices up to that number, or cuda:N of one of them, counted from 0"
        )
    return "gpu", chosen


def choose_device(device: str) -> str:
    """Return the torch device for a device that the user chose; ``"auto"`` prefers a CUDA device.

    Raises
    ------
    TrainingError
        If there is no such device.
    """
    accelerator, _ = find_devices(device)
    if device == "auto":
        return "cuda" if accelerator == "gpu" else "cpu"
    return device


def on_gpu(device: str) -> bool:
    """Return whether a device that the user chose is a CUDA device of this machine."""
    return device != "cpu" and torch.cuda.is_available()
