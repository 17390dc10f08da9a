"""What a training makes of the machine it runs on. The recipe is the same everywhere; results change by rounding.

On a CPU nothing here changes anything. On a GPU batches are made ahead, in memory that it reads by itself, float32
matrices are multiplied in TensorFloat-32 unless the recipe says ``"32"``, and cuDNN tries which of its convolutions
is fastest. Two more things pay for some networks and not for others, so the caller chooses them:
``python -m pipelines.benchmark.speed.gpu`` measures what they are worth.

- ``compile``: torch writes fused kernels for the network, which takes a minute or more first.
- ``channels_last``: convolutions on tensor cores want the channels innermost. Group and instance normalisation were
  written for channels first, and where they convert back and forth it costs more than it brings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.training.protocols import Learner, Run

BACKEND = "inductor"
GPU_THREADS = 2  # that make batches ahead, at least: a GPU must not wait for them
ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}


def hardware(run: Run) -> tuple[str, int | list[int]]:
    """Return what lightning calls accelerator and devices.

    Raises
    ------
    TrainingError
        If there is no such device, or there are too few.
    """
    kind, _, number = run.device.partition(":")
    if kind not in ACCELERATORS or (number and not (kind == "cuda" and number.isdecimal())):
        raise TrainingError(f"unknown device {run.device!r}; expected auto, cpu, cuda or cuda:N")
    if not on_gpu(run.device):
        if kind == "cuda":
            raise TrainingError(f"found no CUDA device for {run.device!r}; give --device cpu, or check the driver")
        return ACCELERATORS[kind], run.devices
    found = torch.cuda.device_count()
    chosen = [int(number)] if number else list(range(run.devices))
    if len(chosen) != run.devices or max(chosen) >= found:
        raise TrainingError(
            f"found {found} CUDA device(s); expected {run.devices} from {run.device!r}: give --device cuda with "
            "--devices up to that number, or cuda:N of one of them, counted from 0"
        )
    return "gpu", chosen


def choose_device(device: str) -> str:
    """Return the torch device that ``"auto"`` stands for, or the one that was asked for.

    Raises
    ------
    TrainingError
        If there is no such device; what a training says of it, too.
    """
    accelerator, _ = hardware(Run(Path(), device=device))
    if device == "auto":
        return "cuda" if accelerator == "gpu" else "cpu"
    return device


def on_gpu(device: str) -> bool:
    """Return whether a device of the caller's choice is a CUDA device of this machine."""
    return device != "cpu" and torch.cuda.is_available()


def in_bfloat16(precision: str, gpu: bool) -> bool:
    """Return whether a precision of the settings means mixed bfloat16 on this machine."""
    if precision in ("bf16", "32"):
        return precision == "bf16"
    if gpu:
        return True
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return precision == "native" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def arithmetic(precision: str, gpu: bool) -> Iterator[None]:
    """Have torch compute as fast as a precision of the settings allows, for as long as it trains."""
    if not gpu:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    exact = precision == "32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    cudnn.allow_tf32, cudnn.benchmark = not exact, True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]


def prepared_for_device(learner: Learner, run: Run, losses: Callable[[Any], Iterator[Tensor]]) -> Learner:
    """Return the learner, or a copy that suits the machine better, as the caller chose.

    Parameters
    ----------
    losses
        Computes, for a learner, losses that together call every part of it.

    Raises
    ------
    TrainingError
        If torch cannot compile the learner's networks, and is asked to.
    """
    if not (run.compile or run.channels_last):
        return learner
    if run.compile and not learner.compiles:
        raise TrainingError(
            "found a loss that holds a gradient (the penalty of wgan-gp), which torch cannot compile; train "
            "without --compile, or with another model.objective"
        )
    copied: Any = copy.deepcopy(learner)
    if run.channels_last:
        flat = learner.view.spatial_dims == 2
        copied.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
    if run.compile:
        for name in outermost_calls(copy.deepcopy(copied), losses):
            _compile(copied.get_submodule(name))
    suits: Learner = copied
    return suits


def _compile(module: nn.Module) -> None:
    """Compile what ``module(...)`` does, torch's own containers included, which ``Module.compile`` leaves alone."""

    def call(*inputs: Any, **named: Any) -> Any:
        return module._call_impl(*inputs, **named)  # noqa: SLF001 - what Module.compile compiles

    module._compiled_call_impl = torch.compile(call, backend=BACKEND)  # noqa: SLF001 - where it puts it; not copied


@torch.no_grad()
def outermost_calls(learner: nn.Module, losses: Callable[[Any], Iterator[Tensor]]) -> list[str]:
    """Return the names of the modules that the losses call, without those that are called within another.

    They are what can be compiled as a whole: what a loss does around them draws random numbers and follows a
    schedule.
    """
    found, depth = dict[str, None](), 0

    def enter(name: str) -> None:
        nonlocal depth
        if depth == 0:
            found[name] = None
        depth += 1

    def leave() -> None:
        nonlocal depth
        depth -= 1

    for name, module in learner.named_modules():
        if name:
            module.register_forward_pre_hook(lambda *_, name=name: enter(name))
            module.register_forward_hook(lambda *_: leave(), always_call=True)
    for _ in losses(learner):
        pass
    return list(found)
