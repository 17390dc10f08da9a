from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.models.ae import Autoencoder
from anomaly.models.base import Detector, FitRun
from anomaly.models.dae import DenoisingAutoencoder, DenoisingSettings
from anomaly.models.f_anogan import GANSettings, GenerativeAdversarial
from anomaly.training.fit import losses_of_every_turn
from anomaly.training.hardware import arithmetic, outermost_calls, prepared_for_device
from anomaly.training.protocols import Run
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of
from tests.training.test_fit import TakesTurns, new

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
    with arithmetic(precision, gpu):
        assert state_of_torch() == (within or before)
    assert state_of_torch() == before


def losses(learner: Any) -> Iterator[Tensor]:
    return losses_of_every_turn(healthy_cohort(2), TRAINING, learner)


def dae() -> Detector:
    return DenoisingAutoencoder(DenoisingSettings(features=(8, 8, 8, 8, 16, 8), atlas=False), GRID)


AE_PARTS = ["convolutions.encode", "to_latent", "from_latent", "convolutions.decode"]


@pytest.mark.parametrize(
    ("learner", "parts"),
    [(new(), [f"network.{part}" for part in AE_PARTS]), (dae(), ["network"])],
    ids=["ae", "dae"],
)
def test_what_is_compiled_is_what_a_loss_calls_as_a_whole(learner: nn.Module, parts: list[str]) -> None:
    assert outermost_calls(learner, losses) == parts


def test_every_part_that_takes_its_turn_is_asked_for_a_loss_once() -> None:
    assert len(list(losses(new()))) == 1
    assert len(list(losses(new(TakesTurns)))) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's tracing
@pytest.mark.parametrize("how", ["compile", "channels_last"])
def test_a_learner_that_suits_the_machine_learns_the_same(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def trace_only(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:  # other backends write kernels
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("anomaly.training.hardware.BACKEND", trace_only)
    plain, other = new(), new()
    plain.fit(healthy_cohort(4), [], FitRun(tmp_path / "plain", TRAINING, device="cpu"))
    chosen: dict[str, Any] = {how: True}
    other.fit(healthy_cohort(4), [], FitRun(tmp_path / "other", TRAINING, device="cpu", **chosen))
    images, mask = images_of(*healthy_scan(0), plain.view)
    first, second = (detector.reconstruct(images, mask).detach() for detector in (plain, other))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert all(parameter.is_contiguous() for parameter in other.parameters())
    assert len(graphs) == (len(AE_PARTS) if how == "compile" else 0)


def test_only_a_copy_is_changed_to_suit_the_machine() -> None:
    learner = new()
    assert prepared_for_device(learner, Run(Path()), losses) is learner
    copied = prepared_for_device(learner, Run(Path(), channels_last=True), losses)
    assert isinstance(copied, Autoencoder)
    first, second = (
        next(p for p in d.parameters() if p.ndim == 4 and min(p.shape[:2]) > 1) for d in (learner, copied)
    )
    assert first.is_contiguous()
    assert second.is_contiguous(memory_format=torch.channels_last)
    assert not second.is_contiguous()


def test_a_gradient_penalty_is_not_compiled() -> None:
    settings = {"channels": (8, 16), "latent_size": 4}
    penalised, free = (
        GenerativeAdversarial(GANSettings.parse({**settings, "objective": objective}, "model"), GRID)
        for objective in ("wgan-gp", "non-saturating")
    )
    with pytest.raises(TrainingError, match=r"wgan-gp.*without --compile"):
        prepared_for_device(penalised, Run(Path(), compile=True), losses)
    assert len(outermost_calls(free, losses)) > 1
