from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly.core.errors import TrainingError
from anomaly.models.dae import DenoisingAutoencoder, DenoisingSettings
from anomaly.models.f_anogan import FAnoGAN, FAnoGANSettings
from anomaly.training.fit import fit
from anomaly.training.hardware import copy_for_device, matmul_precision
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of
from tests.training.test_fit import new

AE_PARTS = 4  # encoder, decoder, and the layers to and from the latent code
TRAINING = TrainingSettings(steps=3, batch_size=2, warmup=0, validate_every=3)


def state_of_torch() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize(
    ("precision", "gpu", "within"),
    [("auto", True, ("high", True, True)), ("32", True, ("highest", False, True)), ("auto", False, None)],
)
def test_torch_computes_fast_for_as_long_as_it_trains_on_a_gpu(
    precision: str, gpu: bool, within: tuple[Any, ...] | None
) -> None:
    before = state_of_torch()
    with matmul_precision(precision, gpu):
        assert state_of_torch() == (within or before)
    assert state_of_torch() == before


def dae() -> DenoisingAutoencoder:
    return DenoisingAutoencoder(DenoisingSettings(features=(8, 8, 8, 8, 16, 8), atlas=False), GRID)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Trace what is compiled, without the generation of kernels."""
    traced: list[torch.fx.GraphModule] = []

    def trace_only(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=trace_only))
    return traced


def n_convolutions(graph: torch.fx.GraphModule) -> int:
    return sum("conv" in str(node.target) for node in graph.graph.nodes if node.op == "call_function")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's tracing
def test_what_is_compiled_is_what_a_loss_calls_as_a_whole(graphs: list[torch.fx.GraphModule]) -> None:
    detector = dae()
    images, mask = images_of(*healthy_scan(0), detector.view)
    copied = copy_for_device(detector, FitRun(Path(), compile=True))
    assert isinstance(copied, DenoisingAutoencoder)
    torch.testing.assert_close(copied.reconstruct(images, mask), detector.reconstruct(images, mask))
    assert max(n_convolutions(graph) for graph in graphs) > 5  # whole blocks, not single layers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's tracing
@pytest.mark.parametrize("how", ["compile", "channels_last"])
def test_a_detector_prepared_for_the_device_learns_the_same(
    how: str, graphs: list[torch.fx.GraphModule], tmp_path: Path
) -> None:
    plain, other = new(), new()
    fit(plain, healthy_cohort(4), [], FitRun(tmp_path / "plain", TRAINING, device="cpu"))
    chosen: dict[str, Any] = {how: True}
    fit(other, healthy_cohort(4), [], FitRun(tmp_path / "other", TRAINING, device="cpu", **chosen))
    images, mask = images_of(*healthy_scan(0), plain.view)
    first, second = (detector.reconstruct(images, mask).detach() for detector in (plain, other))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert all(parameter.is_contiguous() for parameter in other.parameters())
    assert len(graphs) == (AE_PARTS if how == "compile" else 0)


def test_only_a_copy_is_changed_to_suit_the_machine() -> None:
    detector = new()
    copied = copy_for_device(detector, FitRun(Path(), channels_last=True))
    first, second = (
        next(p for p in d.parameters() if p.ndim == 4 and min(p.shape[:2]) > 1) for d in (detector, copied)
    )
    assert first.is_contiguous()
    assert second.is_contiguous(memory_format=torch.channels_last)
    assert not second.is_contiguous()


def test_a_gradient_penalty_is_not_compiled(tmp_path: Path) -> None:
    settings = {"channels": (8, 16), "latent_size": 4, "objective": "wgan-gp"}
    penalised = FAnoGAN(FAnoGANSettings.parse(settings, "model"), GRID)
    with pytest.raises(TrainingError, match=r"wgan-gp.*without --compile"):
        fit(penalised, healthy_cohort(4), [], FitRun(tmp_path, TRAINING, device="cpu", compile=True))
