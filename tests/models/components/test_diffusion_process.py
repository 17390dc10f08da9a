from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from anomaly.models.components.diffusion_process import DiffusionProcess, Noise, Prediction, Schedule, noise_field

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
NOISES: tuple[Noise, ...] = get_args(Noise)
MONAI_NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(3, 1, 6, 8, generator=generator(seed)) for seed in (1, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_small_steps_lead_to_the_moments_of_one_large_step(schedule: Schedule) -> None:
    chain = DiffusionProcess(1000, schedule, "epsilon")
    alpha_bar = chain.alpha_bar.double()
    signal, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for t in range(1, 1001):  # q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t)
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        signal, variance = (1 - beta).sqrt() * signal, (1 - beta) * variance + beta
        torch.testing.assert_close(signal**2, alpha_bar[t])
        torch.testing.assert_close(variance, 1 - alpha_bar[t])


@pytest.mark.parametrize("t", [1, 250, 1000])
def test_noised_images_have_the_mean_and_variance_of_the_closed_form(t: int) -> None:
    chain = DiffusionProcess(1000, "linear", "epsilon")
    start = torch.full((1, 1, 400, 400), 3.0)
    noise = noise_field("gaussian", 1, (400, 400), (1, 1), 1, generator())
    noised = chain.noised(start, noise, torch.tensor([t]))
    alpha_bar = math.prod(1 - (1e-4 + (2e-2 - 1e-4) * s / 999) for s in range(t))
    assert noised.mean() == pytest.approx(3 * math.sqrt(alpha_bar), abs=0.01)
    assert noised.var() == pytest.approx(1 - alpha_bar, rel=0.02)


def test_walking_the_chain_step_by_step_gives_the_moments_of_the_closed_form() -> None:
    chain, rng = DiffusionProcess(1000, "linear", "epsilon"), generator()
    x = torch.full((20000,), 2.0)
    for t in range(1, 301):
        beta = 1 - chain.alpha_bar[t] / chain.alpha_bar[t - 1]
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=rng)
    alpha_bar = float(chain.alpha_bar[300])
    assert x.mean() == pytest.approx(2 * math.sqrt(alpha_bar), abs=0.03)
    assert x.var() == pytest.approx(1 - alpha_bar, rel=0.04)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [50, 1000])
def test_chains_of_any_length_begin_with_the_image_and_end_in_noise(schedule: Schedule, timesteps: int) -> None:
    alpha_bar = DiffusionProcess(timesteps, schedule, "epsilon").alpha_bar
    assert len(alpha_bar) == timesteps + 1
    assert alpha_bar[0] == 1
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] < 1e-4


def test_the_cosine_schedule_is_a_cosine() -> None:
    alpha_bar = DiffusionProcess(1000, "cosine", "epsilon").alpha_bar
    angle = (torch.arange(1000) / 1000 + 8e-3) / (1 + 8e-3) * math.pi / 2
    torch.testing.assert_close(alpha_bar[:-1], (angle.cos() / angle[0].cos()) ** 2, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_target_gives_back_image_and_noise(schedule: Schedule, prediction: Prediction) -> None:
    chain = DiffusionProcess(1000, schedule, prediction)
    (start, noise), t = images_and_noise(), torch.tensor([20, 300, 800])
    noised = chain.noised(start, noise, t)
    solved = chain.solved(chain.target(start, noise, t), noised, t)
    torch.testing.assert_close(solved, (start, noise), atol=1e-4, rtol=1e-4)


def test_v_turns_noise_and_image_into_each_other() -> None:
    chain = DiffusionProcess(1000, "linear", "v")
    (start, noise), t = images_and_noise(), torch.tensor([1, 300, 1000])
    alpha_bar = chain.alpha_bar[t].reshape(3, 1, 1, 1)
    v = chain.target(start, noise, t)
    torch.testing.assert_close(v, alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * start)
    noised = chain.noised(start, noise, t)
    torch.testing.assert_close(v**2 + noised**2, start**2 + noise**2)  # a rotation


def test_noising_and_v_are_those_of_monai() -> None:
    chain, theirs = DiffusionProcess(1000, "linear", "v"), DDPMScheduler(1000)
    (start, noise), t = images_and_noise(), torch.tensor([1, 300, 1000])
    torch.testing.assert_close(chain.noised(start, noise, t), theirs.add_noise(start, noise, t - 1))
    torch.testing.assert_close(chain.target(start, noise, t), theirs.get_velocity(start, noise, t - 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_step_back_is_that_of_monai(prediction: Prediction) -> None:
    chain = DiffusionProcess(1000, "linear", prediction)
    theirs = DDIMScheduler(1000, clip_sample=False, prediction_type=MONAI_NAMES[prediction])
    theirs.set_timesteps(10)  # steps of 100
    noised, output = images_and_noise()
    t = torch.full((3,), 500)
    solved = chain.solved(output, noised, t)
    expected, expected_start = theirs.step(output, 499, noised)
    torch.testing.assert_close(chain.noised(*solved, t - 100), expected)
    torch.testing.assert_close(solved[0], expected_start)


def test_the_way_back_ends_at_the_image_and_never_stands_still() -> None:
    t = DiffusionProcess(1000, "linear", "sample").timesteps_back(torch.tensor([7, 250, 1000]), 7)
    assert t.shape == (8, 3)
    assert t[0].tolist() == [7, 250, 1000]
    assert t[-1].tolist() == [0, 0, 0]
    assert (t.diff(dim=0) < 0).all()


def test_the_chain_is_no_part_of_the_state() -> None:
    assert not DiffusionProcess(1000, "linear", "sample").state_dict()


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("shape", [(96, 80), (32, 40, 24)])
def test_noise_has_mean_zero_and_standard_deviation_one(kind: Noise, shape: tuple[int, ...]) -> None:
    noise = noise_field(kind, 2, shape, [8.0] * len(shape), 2, generator())
    assert noise.shape == (2, 1, *shape)
    torch.testing.assert_close(noise.flatten(1).mean(1), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(2), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["coarse", "simplex"])
def test_noise_has_the_grain_that_was_asked_for(kind: Noise) -> None:
    def alike(distance: int, grain: float) -> float:
        noise = noise_field(kind, 8, (128, 128), (grain, grain), 1, generator())
        return float((noise[..., distance:] * noise[..., :-distance]).mean())

    assert alike(1, 16.0) > 0.95
    assert abs(alike(32, 16.0)) < 0.2
    assert alike(2, 16.0) > alike(2, 6.0)


def test_nodes_of_coarse_noise_lie_elsewhere_every_time() -> None:
    kinks = set()
    for seed in range(6):
        noise = noise_field("coarse", 1, (64, 64), (16, 16), 1, generator(seed))
        bends = noise[0, 0].diff(n=2, dim=1).abs().sum(0)
        kinks.add(int(bends.argmax()) % 16)
    assert len(kinks) > 2
