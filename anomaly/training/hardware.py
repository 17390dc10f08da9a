"""Use the hardware well. The recipe is the same on every machine; results differ by rounding.

A CPU is used as it is. On a GPU, batches are made ahead in page-locked memory, float32 matrices are multiplied in
TensorFloat-32 unless the recipe says ``"32"``, and cuDNN picks the fastest of its convolutions. Two more options
make some networks faster and others slower, so the caller chooses them;
``python -m pipelines.benchmark.speed.gpu`` measures their effect.

- ``compile``: torch generates fused kernels for the network, which takes a minute or more first.
- ``channels_last``: convolutions on tensor cores work best with the channels innermost. Group and instance
  normalisation are written for channels first; the conversions can cost more than the convolutions gain.
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
GPU_THREADS = 2  # minimum number of threads that make batches ahead for a GPU


def in_bfloat16(precision: str, gpu: bool) -> bool:
    """Return whether a precision setting means mixed bfloat16 on this machine."""
    if precision in ("bf16", "32"):
        return precision == "bf16"
    if gpu:
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return precision == "native" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def matmul_precision(precision: str, gpu: bool) -> Iterator[None]:
    """Let torch use the fastest arithmetic that a precision setting allows, inside the context."""
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
    """Return the detector, or a copy that is compiled or in channels-last memory, as the run asks.

    Parameters
    ----------
    losses
        Computes losses of a detector that together call every part of it.

    Raises
    ------
    TrainingError
        If the run asks to compile a network that torch cannot compile.
    """
    if not (run.compile or run.channels_last):
        return detector
    if run.compile and not detector.compiles:
        raise TrainingError(
            "found a loss that contains a gradient (the penalty of wgan-gp), which torch cannot compile; train "
            "without --compile, or with another model.objective"
        )
    copied: Any = copy.deepcopy(detector)
    if run.channels_last:
        flat = detector.view.spatial_dims == 2
        copied.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
    if run.compile:
        for name in outermost_calls(copy.deepcopy(copied), losses):
            _compile(copied.get_submodule(name))
    prepared: NetworkDetector = copied
    return prepared


def _compile(module: nn.Module) -> None:
    """Compile the call of a module. Unlike ``Module.compile``, this includes torch's own containers."""

    def call(*inputs: Any, **named: Any) -> Any:
        return module._call_impl(*inputs, **named)  # noqa: SLF001 - Module.compile compiles this

    module._compiled_call_impl = torch.compile(call, backend=BACKEND)  # noqa: SLF001 - as Module.compile; not copied


@torch.no_grad()
def outermost_calls(detector: nn.Module, losses: Callable[[Any], Iterator[Tensor]]) -> list[str]:
    """Return the names of the modules that the losses call, without those that are called within another.

    Each of them can be compiled as a whole. The code of a loss around them cannot: it draws random numbers and
    follows a schedule.
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
