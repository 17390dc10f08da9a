from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.models.ae import Autoencoder
from anomaly.models.base import Detector
from anomaly.models.dae import DenoisingAutoencoder, DenoisingSettings
from anomaly.models.f_anogan import FAnoGAN, FAnoGANSettings
from anomaly.training.fit import fit, losses_of_every_part
from anomaly.training.hardware import matmul_precision, outermost_calls, prepared_for_device
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of
from tests.training.test_fit import TrainsPartsInTurn, new

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


def losses(detector: Any) -> Iterator[Tensor]:
    return losses_of_every_part(healthy_cohort(2), TRAINING, detector)


def dae() -> Detector:
    return DenoisingAutoencoder(DenoisingSettings(features=(8, 8, 8, 8, 16, 8), atlas=False), GRID)


AE_PARTS = ["convolutions.encode", "to_latent", "from_latent", "convolutions.decode"]


@pytest.mark.parametrize(
    ("detector", "parts"),
    [(new(), [f"network.{part}" for part in AE_PARTS]), (dae(), ["network"])],
    ids=["ae", "dae"],
)
def test_what_is_compiled_is_what_a_loss_calls_as_a_whole(detector: nn.Module, parts: list[str]) -> None:
    assert outermost_calls(detector, losses) == parts


def test_every_part_that_takes_its_turn_is_asked_for_a_loss_once() -> None:
    assert len(list(losses(new()))) == 1
    assert len(list(losses(new(TrainsPartsInTurn)))) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's tracing
@pytest.mark.parametrize("how", ["compile", "channels_last"])
def test_a_detector_prepared_for_the_device_learns_the_same(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def trace_only(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:  # other backends write kernels
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("anomaly.training.hardware.BACKEND", trace_only)
    plain, other = new(), new()
    fit(plain, healthy_cohort(4), [], FitRun(tmp_path / "plain", TRAINING, device="cpu"))
    chosen: dict[str, Any] = {how: True}
    fit(other, healthy_cohort(4), [], FitRun(tmp_path / "other", TRAINING, device="cpu", **chosen))
    images, mask = images_of(*healthy_scan(0), plain.view)
    first, second = (detector.reconstruct(images, mask).detach() for detector in (plain, other))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert all(parameter.is_contiguous() for parameter in other.parameters())
    assert len(graphs) == (len(AE_PARTS) if how == "compile" else 0)


def test_only_a_copy_is_changed_to_suit_the_machine() -> None:
    detector = new()
    assert prepared_for_device(detector, FitRun(Path()), losses) is detector
    copied = prepared_for_device(detector, FitRun(Path(), channels_last=True), losses)
    assert isinstance(copied, Autoencoder)
    first, second = (
        next(p for p in d.parameters() if p.ndim == 4 and min(p.shape[:2]) > 1) for d in (detector, copied)
    )
    assert first.is_contiguous()
    assert second.is_contiguous(memory_format=torch.channels_last)
    assert not second.is_contiguous()


def test_a_gradient_penalty_is_not_compiled() -> None:
    settings = {"channels": (8, 16), "latent_size": 4}
    penalised, free = (
        FAnoGAN(FAnoGANSettings.parse({**settings, "objective": objective}, "model"), GRID)
        for objective in ("wgan-gp", "non-saturating")
    )
    with pytest.raises(TrainingError, match=r"wgan-gp.*without --compile"):
        prepared_for_device(penalised, FitRun(Path(), compile=True), losses)
    assert len(outermost_calls(free, losses)) > 1
