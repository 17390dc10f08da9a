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
from typing import Any

import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.models.base import NetworkDetector
from anomaly.training.run import FitRun

BACKEND = "inductor"
GPU_THREADS = 2  # that make batches ahead, at least: a GPU must not wait for them


def in_bfloat16(precision: str, gpu: bool) -> bool:
    """Return whether a precision of the settings means mixed bfloat16 on this machine."""
    if precision in ("bf16", "32"):
        return precision == "bf16"
    if gpu:
        return True
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return precision == "native" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def matmul_precision(precision: str, gpu: bool) -> Iterator[None]:
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


def prepared_for_device(
    detector: NetworkDetector, run: FitRun, losses: Callable[[Any], Iterator[Tensor]]
) -> NetworkDetector:
    """Return the detector, or a copy that suits the machine better, as the caller chose.

    Parameters
    ----------
    losses
        Computes, for a detector, losses that together call every part of it.

    Raises
    ------
    TrainingError
        If torch cannot compile the detector's networks, and is asked to.
    """
    if not (run.compile or run.channels_last):
        return detector
    if run.compile and not detector.compiles:
        raise TrainingError(
            "found a loss that holds a gradient (the penalty of wgan-gp), which torch cannot compile; train "
            "without --compile, or with another model.objective"
        )
    copied: Any = copy.deepcopy(detector)
    if run.channels_last:
        flat = detector.view.spatial_dims == 2
        copied.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
    if run.compile:
        for name in outermost_calls(copy.deepcopy(copied), losses):
            _compile(copied.get_submodule(name))
    suits: NetworkDetector = copied
    return suits


def _compile(module: nn.Module) -> None:
    """Compile what ``module(...)`` does, torch's own containers included, which ``Module.compile`` leaves alone."""

    def call(*inputs: Any, **named: Any) -> Any:
        return module._call_impl(*inputs, **named)  # noqa: SLF001 - what Module.compile compiles

    module._compiled_call_impl = torch.compile(call, backend=BACKEND)  # noqa: SLF001 - where it puts it; not copied


@torch.no_grad()
def outermost_calls(detector: nn.Module, losses: Callable[[Any], Iterator[Tensor]]) -> list[str]:
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

    for name, module in detector.named_modules():
        if name:
            module.register_forward_pre_hook(lambda *_, name=name: enter(name))
            module.register_forward_hook(lambda *_: leave(), always_call=True)
    for _ in losses(detector):
        pass
    return list(found)
