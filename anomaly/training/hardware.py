"""Precision, memory layout and compilation for a device. Training settings are the same on every machine.

A CPU needs nothing. On a GPU, batches are made ahead in page-locked memory, float32 matrices are multiplied in
TensorFloat-32 unless ``precision`` is ``"32"``, and cuDNN picks the fastest of its convolutions. Two more options
make some networks faster and others slower, so the caller chooses them;
``python -m pipelines.benchmark.speed.gpu`` measures their effect.

- ``compile``: torch generates fused kernels for the network, which takes a minute or more first.
- ``channels_last``: convolutions on tensor cores work best with the channels innermost. Group and instance
  normalisation are written for channels first; the conversions can cost more than the convolutions gain.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from anomaly.models.base import NetworkDetector
from anomaly.training.run import FitRun

MIN_GPU_BATCH_THREADS = 2  # minimum number of threads that make batches ahead for a GPU


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


def copy_for_device(detector: NetworkDetector, run: FitRun) -> NetworkDetector:
    """Return a copy to train, compiled or in channels-last memory if the run asks for it."""
    copied = copy.deepcopy(detector)
    if run.channels_last:
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        copied.to(memory_format=formats[detector.view.spatial_dims])  # type: ignore[call-overload]
    if run.compile:
        for module in list(copied.modules())[1:]:
            _compile(module)
    return copied


def _compile(module: nn.Module) -> None:
    """Compile the call of a module, if it is called outside of another that is compiled.

    Unlike ``Module.compile``, this includes torch's own containers. The code of a loss cannot be compiled: it draws
    random numbers and follows a schedule.
    """

    def call(*inputs: Any, **named: Any) -> Any:
        return module._call_impl(*inputs, **named)  # noqa: SLF001 - Module.compile compiles this

    module._compiled_call_impl = torch.compile(call)  # noqa: SLF001 - as Module.compile; not copied
