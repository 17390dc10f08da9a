from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from anomaly.core.errors import ConfigError
from anomaly.models.components.adversarial import (
    AdversarialSettings,
    ImageCritic,
    ImageGenerator,
    Objective,
    critic_loss,
    feature_distance,
    follow,
    gan_diagnostics,
    generator_loss,
    gradient_penalty,
)
from tests.models.factories import GRID, MemoryCohort, healthy_scan, strangers

SHAPES = [(16, 20), (11, 7), (9, 10, 12)]
CHANNELS = (8, 16)
GAN_OBJECTIVES: list[Objective] = ["non-saturating", "minimax"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed))


def test_the_wasserstein_critic_widens_the_gap_that_the_generator_closes() -> None:
    real, fake = normal(8), normal(8, seed=1)
    torch.testing.assert_close(critic_loss("wgan-gp", real, fake), fake.mean() - real.mean())
    torch.testing.assert_close(generator_loss("wgan-gp", fake), -fake.mean())


@pytest.mark.parametrize("objective", GAN_OBJECTIVES)
def test_the_critic_of_the_others_learns_by_cross_entropy(objective: Objective) -> None:
    real, fake = normal(8), normal(8, seed=1)
    expected = F.binary_cross_entropy(real.sigmoid(), torch.ones(8))
    expected = expected + F.binary_cross_entropy(fake.sigmoid(), torch.zeros(8))
    torch.testing.assert_close(critic_loss(objective, real, fake), expected)


def test_the_generator_losses_are_those_of_goodfellow() -> None:
    fake = normal(8)
    torch.testing.assert_close(generator_loss("minimax", fake), torch.log(1 - fake.sigmoid()).mean())
    torch.testing.assert_close(generator_loss("non-saturating", fake), -torch.log(fake.sigmoid()).mean())


def test_where_the_critic_is_sure_only_the_minimax_gradient_vanishes() -> None:
    slopes = {}
    for objective in GAN_OBJECTIVES:
        sure = torch.full((4,), -12.0, requires_grad=True)
        (slope,) = torch.autograd.grad(generator_loss(objective, sure), sure)
        slopes[objective] = float(slope.sum())
    assert abs(slopes["minimax"]) < 1e-4
    assert slopes["non-saturating"] == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_penalty_of_a_linear_critic_is_that_of_its_slope_and_can_be_differentiated(bf16: bool) -> None:
    critic = nn.Linear(60, 1, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        penalty = gradient_penalty(lambda x: critic(x.flatten(1)), normal(4, 1, 6, 10), normal(4, 1, 6, 10), rng())
    norm = critic.weight.norm()
    torch.testing.assert_close(penalty, (norm - 1) ** 2)
    (slope,) = torch.autograd.grad(penalty, critic.weight)
    torch.testing.assert_close(slope, 2 * (norm - 1) * critic.weight / norm)


def test_the_penalty_looks_between_real_and_generated_images_only() -> None:
    seen: list[Tensor] = []

    def critic(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.flatten(1).sum(1)

    real, fake = torch.zeros(64, 1, 3, 3), torch.ones(64, 1, 3, 3)
    penalty = gradient_penalty(critic, real, fake, rng())
    places = seen[0].flatten(1)
    assert torch.equal(places, places[:, :1].expand(-1, 9))  # one u for all voxels of an image
    assert 0 <= float(places.min()) < 0.1
    assert 0.9 < float(places.max()) <= 1
    assert float(penalty) == pytest.approx((math.sqrt(9) - 1) ** 2)


def test_a_penalty_minimised_makes_the_critic_nearly_1_lipschitz() -> None:
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


def test_what_a_critic_is_told_changes_its_answer_by_how_well_the_image_goes_with_it() -> None:
    critic, images = ImageCritic(1, CHANNELS, 1, (16, 20), told=3), normal(4, 1, 16, 20)
    told = normal(4, 3, seed=1)
    assert critic.expected is not None
    alone = critic.head(critic.features(images))[:, 0]
    match = torch.einsum("bf,fc,bc->b", critic.features(images), critic.expected.weight, told)
    torch.testing.assert_close(critic(images, told)[:, 0], alone + match, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(critic(images, torch.zeros_like(told))[:, 0], alone)  # nothing is known


def test_spectral_norm_brings_the_largest_singular_value_of_every_layer_to_1() -> None:
    torch.manual_seed(0)
    critic = ImageCritic(1, CHANNELS, 1, (16, 20), spectral=True, told=3)
    for _ in range(30):  # power iterations
        critic(normal(2, 1, 16, 20), normal(2, 3))
    layers = [m for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("image_channels", [1, 3])
def test_images_of_any_shape_are_made_and_judged(shape: tuple[int, ...], image_channels: int) -> None:
    images = ImageGenerator(5, CHANNELS, image_channels, shape)(normal(2, 5))
    assert images.shape == (2, image_channels, *shape)
    assert ImageCritic(image_channels, CHANNELS, 4, shape)(images).shape == (2, 4)


def test_what_the_critic_says_of_an_image_does_not_depend_on_the_others() -> None:
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


def test_background_can_be_0_whatever_the_range() -> None:
    generator = ImageGenerator(5, CHANNELS, 1, (16, 20))
    generator.lowest.fill_(-3.0)
    last = [layer for layer in generator.layers.modules() if isinstance(layer, nn.Conv2d)][-1]
    assert last.bias is not None
    last.bias.data[:4] = -100.0  # surely no tissue, at the four places of each coarse voxel
    assert float(generator(normal(2, 5)).detach().abs().max()) < 1e-6


def test_a_running_mean_follows_at_once_at_first_and_slowly_later() -> None:
    current = nn.Linear(3, 3)
    for updates, share in ((0, 0.9), (10_000, 0.01)):
        mean = nn.Linear(3, 3)
        before = mean.weight.detach().clone()
        follow(mean, current, updates)
        torch.testing.assert_close(mean.weight, torch.lerp(before, current.weight, share))


def test_the_feature_distance_is_a_mean_square_per_image() -> None:
    features, others = normal(3, 7), normal(3, 7, seed=1)
    expected = torch.stack([F.mse_loss(a, b) for a, b in zip(features, others, strict=True)])
    torch.testing.assert_close(feature_distance(features, others), expected)


def test_channels_that_the_groups_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        AdversarialSettings.parse({"family": "x", "channels": [12]}, "model")


def test_decays_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="betas"):
        AdversarialSettings.parse({"family": "x", "betas": [0.5, 1.0]}, "model")


def images_of(first: int) -> Iterator[Tensor]:
    """Yield batches of 16 slices, each of another healthy scan."""
    for seed in itertools.count(first, 16):
        slices = [healthy_scan(seed + n)[0][None, :, :, 3 + n % 6] for n in range(16)]
        yield torch.from_numpy(np.stack(slices))


def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for images in images_of(0):
        yield images, images != 0, strangers(len(images))


def gap_of(value: float) -> object:
    """Return a critic whose answers to two batches in turn differ by ``value``."""
    answers = itertools.cycle([value, 0.0])
    return lambda images, covariates: torch.full((len(images),), next(answers))


def diagnostics(
    generate: object, gap: float = 1.0, objective: Objective = "wgan-gp"
) -> tuple[dict[str, float], str]:
    found = gan_diagnostics(batches(), generate, gap_of(gap), objective)  # type: ignore[arg-type]
    return dict(found.numbers), " ".join(found.warnings)


def varied() -> object:
    """Return a generator that makes other healthy scans."""
    others = images_of(1000)
    return lambda covariates: next(others)


def test_a_generator_of_varied_healthy_images_is_not_complained_of() -> None:
    numbers, warnings = diagnostics(varied())
    assert numbers["coverage"] > 0.8
    assert numbers["distinct"] > 0.8
    assert numbers["critic_gap"] == 1
    assert not warnings


def test_a_generator_that_has_collapsed_is_told_of_with_a_remedy() -> None:
    one = next(images_of(1000))[:1]
    numbers, warnings = diagnostics(lambda covariates: one.expand(len(covariates), -1, -1, -1))
    assert numbers["coverage"] < 0.1
    assert numbers["distinct"] == 0
    assert "the generator repeats itself (mode collapse): coverage 0.0" in warnings
    assert "lower training.learning_rate" in warnings


def test_a_generator_that_repeats_a_few_images_with_a_little_noise_has_collapsed_too() -> None:
    few, noise = next(images_of(1000))[:2], rng()

    def generate(covariates: Tensor) -> Tensor:
        images = few.repeat(len(covariates) // 2, 1, 1, 1)
        return images + 1e-3 * torch.randn(images.shape, generator=noise)

    assert "repeats itself" in diagnostics(generate)[1]


def test_a_generator_of_noise_does_not_repeat_itself_but_is_told_of() -> None:
    noise = rng()
    _, warnings = diagnostics(lambda covariates: torch.randn((len(covariates), 1, 16, 20), generator=noise))
    assert "does not make images like the real ones" in warnings
    assert "repeats" not in warnings


@pytest.mark.parametrize(("gap", "objective"), [(1e4, "wgan-gp"), (50.0, "minimax"), (math.nan, "non-saturating")])
def test_a_critic_out_of_bounds_is_told_of(gap: float, objective: Objective) -> None:
    assert "the critic has left its bounds" in diagnostics(varied(), gap, objective)[1]


def test_a_critic_that_tells_nothing_apart_is_told_of_where_there_is_a_difference() -> None:
    noise = rng()
    _, warnings = diagnostics(lambda covariates: torch.rand((len(covariates), 1, 16, 20), generator=noise), gap=0.0)
    assert "no longer tells real from generated" in warnings
    assert not diagnostics(varied(), gap=0.0)[1]


def test_health_is_the_same_each_time() -> None:
    assert diagnostics(varied()) == diagnostics(varied())
