from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly.core.covariates import UNKNOWN_COVARIATES
from anomaly.core.errors import ConfigError
from anomaly.models.base import StepInfo, target_slice
from anomaly.models.components.conv_autoencoder import l2
from anomaly.models.generation import Embedder
from anomaly.models.stacked_ae import StackedAutoencoder, StackedSettings
from anomaly.training.batches import Batch
from anomaly.training.loop import make_optimizer
from anomaly.training.settings import TrainingSettings
from anomaly.training.step import TrainingStep
from tests.models.factories import GRID, healthy_scan, images_of

STEPS = 10
LAYERS = [0, 0, 1, 1, 2, 2]  # of three, in the six steps before the fine-tuning


def new(**changes: Any) -> StackedAutoencoder:
    settings = StackedSettings.parse(
        {"channels": (8, 16), "latent_size": 6, "fine_tuning": 0.4, **changes}, "model"
    )
    return StackedAutoencoder(settings, GRID)


def step_info(step: int, seed: int = 0) -> StepInfo:
    return StepInfo(step, STEPS, torch.Generator().manual_seed(seed))


def changed_by_each_step(detector: StackedAutoencoder) -> list[set[int]]:
    """Return the layers whose weights change, for every step of a training."""
    images, mask = images_of(*healthy_scan(0), detector.view)
    covariates = torch.from_numpy(UNKNOWN_COVARIATES).expand(len(images), -1)
    settings = TrainingSettings(steps=STEPS, learning_rate=1e-3, warmup=0)
    module, optimiser = TrainingStep(detector, settings), make_optimizer(detector, settings)
    changed = []
    for step in range(STEPS):
        before = [[weight.clone() for weight in layer.parameters()] for layer in detector.network.layers]
        module(Batch(step, images, mask, covariates))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        changed.append({k for k, layer in enumerate(detector.network.layers) if differs(before[k], layer)})
    return changed


def differs(before: list[Tensor], layer: torch.nn.Module) -> bool:
    pairs = [torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True)]
    assert len(set(pairs)) == 1  # all weights of a layer, or none
    return not pairs[0]


def test_layers_are_trained_in_turn_and_then_together() -> None:
    assert changed_by_each_step(new()) == [{k} for k in LAYERS] + [{0, 1, 2}] * 4


def test_without_greedy_all_layers_are_trained_from_the_start() -> None:
    detector = new(greedy=False)
    assert changed_by_each_step(detector) == [{0, 1, 2}] * STEPS
    assert detector.ready_to_validate(0, STEPS)


def test_validation_starts_when_all_layers_are_trained() -> None:
    detector = new()
    assert [detector.ready_to_validate(step, STEPS) for step in range(STEPS + 1)] == [False] * 6 + [True] * 5
    assert all(detector.ready_to_validate(steps, steps) for steps in range(1, 6))


@pytest.mark.parametrize("k", [1, 2])
def test_a_layer_learns_to_reconstruct_the_code_of_the_layers_below(k: int) -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    layers = detector.network.layers
    code = images
    for layer in layers[:k]:
        code = layer.encode(code)
    expected = ((layers[k].decode(layers[k].encode(code)) - code) ** 2).mean()
    loss = detector.loss(images, mask, step_info(LAYERS.index(k)))["loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    reached = [any(weight.grad is not None for weight in layer.parameters()) for layer in layers]
    assert reached == [number == k for number in range(3)]


def test_the_first_layer_and_the_whole_stack_reconstruct_the_image() -> None:
    detector = new(view={"kind": "slice", "neighbours": 1})
    images, mask = images_of(*healthy_scan(0), detector.view)
    for step, reconstruction in ((0, detector.network.layers[0](images)), (9, detector.reconstruct(images, mask))):
        loss = detector.loss(images, mask, step_info(step))["loss"]
        torch.testing.assert_close(loss, l2(reconstruction, target_slice(images), mask))


def test_masking_noise_depends_on_the_generator_and_is_off_in_fine_tuning() -> None:
    plain, noisy = new(), new(masking_noise=0.5)
    images, mask = images_of(*healthy_scan(0), plain.view)

    def loss(detector: StackedAutoencoder, step: int, seed: int) -> float:
        return float(detector.loss(images, mask, step_info(step, seed))["loss"].detach())

    assert loss(noisy, 2, 0) == loss(noisy, 2, 0) != loss(noisy, 2, 1)
    assert loss(noisy, 2, 0) != loss(plain, 2, 0)
    assert loss(noisy, 9, 0) == loss(plain, 9, 0)  # no masking noise in fine-tuning


@pytest.mark.parametrize("kind", ["slice", "patch", "volume"])
def test_slices_patches_and_volumes_have_a_code_and_a_reconstruction(kind: str) -> None:
    detector = new(view={"kind": kind, "size": (7, 9, 11)})
    images, mask = images_of(*healthy_scan(0), detector.view)
    assert isinstance(detector, Embedder)
    assert detector.embed(images, mask).shape == (len(images), 6)
    assert detector.reconstruct(images, mask).shape == mask.shape


def test_a_training_without_fine_tuning_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fine_tuning.*greater than 0"):
        new(fine_tuning=0.0)
