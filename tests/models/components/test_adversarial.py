from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from anomaly.core.errors import ConfigError
from anomaly.models.components.adversarial import (
    AdversarialSettings,
    ImageCritic,
    ImageGenerator,
    critic_loss,
    feature_distance,
    generator_loss,
    gradient_penalty,
)
from anomaly.models.components.gan_diagnostics import Objective
from tests.models.factories import GRID, MemoryCohort, healthy_scan

SHAPES = [(16, 20), (11, 7), (9, 10, 12)]
CHANNELS = (8, 16)
GAN_OBJECTIVES: list[Objective] = ["non-saturating", "minimax"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def test_the_wasserstein_losses_are_the_gap_and_its_generated_part() -> None:
    real, fake = normal(8), normal(8, seed=1)
    torch.testing.assert_close(critic_loss("wgan-gp", real, fake), fake.mean() - real.mean())
    torch.testing.assert_close(generator_loss("wgan-gp", fake), -fake.mean())


@pytest.mark.parametrize("objective", GAN_OBJECTIVES)
def test_the_critic_loss_of_the_other_objectives_is_the_cross_entropy(objective: Objective) -> None:
    real, fake = normal(8), normal(8, seed=1)
    expected = F.binary_cross_entropy(real.sigmoid(), torch.ones(8))
    expected = expected + F.binary_cross_entropy(fake.sigmoid(), torch.zeros(8))
    torch.testing.assert_close(critic_loss(objective, real, fake), expected)


def test_the_generator_losses_are_those_of_goodfellow() -> None:
    fake = normal(8)
    torch.testing.assert_close(generator_loss("minimax", fake), torch.log(1 - fake.sigmoid()).mean())
    torch.testing.assert_close(generator_loss("non-saturating", fake), -torch.log(fake.sigmoid()).mean())


def test_only_the_minimax_gradient_vanishes_for_a_confident_critic() -> None:
    slopes = {}
    for objective in GAN_OBJECTIVES:
        output = torch.full((4,), -12.0, requires_grad=True)
        (slope,) = torch.autograd.grad(generator_loss(objective, output), output)
        slopes[objective] = float(slope.sum())
    assert abs(slopes["minimax"]) < 1e-4
    assert slopes["non-saturating"] == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_penalty_of_a_linear_critic_follows_from_its_slope_and_is_differentiable(bf16: bool) -> None:
    critic = nn.Linear(60, 1, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        penalty = gradient_penalty(lambda x: critic(x.flatten(1)), normal(4, 1, 6, 10), normal(4, 1, 6, 10), rng())
    norm = critic.weight.norm()
    torch.testing.assert_close(penalty, (norm - 1) ** 2)
    (slope,) = torch.autograd.grad(penalty, critic.weight)
    torch.testing.assert_close(slope, 2 * (norm - 1) * critic.weight / norm)


def test_the_penalty_is_taken_between_real_and_generated_images() -> None:
    inputs: list[Tensor] = []

    def critic(images: Tensor) -> Tensor:
        inputs.append(images.detach())
        return images.flatten(1).sum(1)

    real, fake = torch.zeros(64, 1, 3, 3), torch.ones(64, 1, 3, 3)
    penalty = gradient_penalty(critic, real, fake, rng())
    points = inputs[0].flatten(1)
    assert torch.equal(points, points[:, :1].expand(-1, 9))  # one u for all voxels of an image
    assert 0 <= float(points.min()) < 0.1
    assert 0.9 < float(points.max()) <= 1
    assert float(penalty) == pytest.approx((math.sqrt(9) - 1) ** 2)


@pytest.mark.slow
def test_the_penalty_makes_the_critic_nearly_1_lipschitz() -> None:
    torch.manual_seed(0)
    critic = ImageCritic(1, CHANNELS, 1, (8, 8))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2, betas=(0.0, 0.9))
    real, fake = normal(16, 1, 8, 8) + 1, normal(16, 1, 8, 8, seed=1)
    for step in range(60):
        loss = critic_loss("wgan-gp", critic(real), critic(fake))
        loss = loss + 10 * gradient_penalty(critic, real, fake, rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gap = float((critic(real).mean() - critic(fake).mean()).detach())
    assert 1 < gap < 2 * float((real - fake).flatten(1).norm(dim=1).mean())


def test_the_condition_of_a_critic_adds_the_projection_of_the_features() -> None:
    critic, images = ImageCritic(1, CHANNELS, 1, (16, 20), condition_size=3), normal(4, 1, 16, 20)
    condition = normal(4, 3, seed=1)
    assert critic.projection is not None
    alone = critic.head(critic.features(images))[:, 0]
    match = torch.einsum("bf,fc,bc->b", critic.features(images), critic.projection.weight, condition)
    torch.testing.assert_close(critic(images, condition)[:, 0], alone + match, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(critic(images, torch.zeros_like(condition))[:, 0], alone)  # an unknown subject


def test_spectral_norm_brings_the_largest_singular_value_of_every_layer_to_1() -> None:
    torch.manual_seed(0)
    critic = ImageCritic(1, CHANNELS, 1, (16, 20), spectral=True, condition_size=3)
    for _ in range(30):  # power iterations
        critic(normal(2, 1, 16, 20), normal(2, 3))
    layers = [m for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("image_channels", [1, 3])
def test_generator_and_critic_handle_images_of_any_shape(shape: tuple[int, ...], image_channels: int) -> None:
    images = ImageGenerator(5, CHANNELS, image_channels, shape)(normal(2, 5))
    assert images.shape == (2, image_channels, *shape)
    assert ImageCritic(image_channels, CHANNELS, 4, shape)(images).shape == (2, 4)


def test_the_output_of_the_critic_does_not_depend_on_other_images() -> None:
    critic, images = ImageCritic(1, CHANNELS, 1, (16, 20)), normal(6, 1, 16, 20)
    torch.testing.assert_close(critic(images)[:1], critic(images[:1]))


def test_generated_intensities_stay_in_the_range_of_the_healthy_ones() -> None:
    voxels, mask = healthy_scan(0)
    generator = ImageGenerator(5, CHANNELS, 1, (16, 20))
    generator.learn_range(MemoryCohort([(2 * voxels - 0.5, mask), (voxels, mask)], GRID))
    images = generator(100 * normal(50, 5)).detach()
    assert float(generator.lowest) == pytest.approx(-0.5)
    assert float(images.min()) >= -0.5
    assert float(images.max()) <= 2 * float(voxels.max()) - 0.5


def test_the_background_can_be_0_for_any_range() -> None:
    generator = ImageGenerator(5, CHANNELS, 1, (16, 20))
    generator.lowest.fill_(-3.0)
    last = [layer for layer in generator.layers.modules() if isinstance(layer, nn.Conv2d)][-1]
    assert last.bias is not None
    last.bias.data[:4] = -100.0  # background, at the four positions of each coarse voxel
    assert float(generator(normal(2, 5)).detach().abs().max()) < 1e-6


def test_the_feature_distance_is_a_mean_square_per_image() -> None:
    features, others = normal(3, 7), normal(3, 7, seed=1)
    expected = torch.stack([F.mse_loss(a, b) for a, b in zip(features, others, strict=True)])
    torch.testing.assert_close(feature_distance(features, others), expected)


def test_channels_that_are_not_multiples_of_8_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        AdversarialSettings.parse({"family": "x", "channels": [12]}, "model")


def test_decays_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="betas"):
        AdversarialSettings.parse({"family": "x", "betas": [0.5, 1.0]}, "model")
