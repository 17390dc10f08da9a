from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from anomaly.models.components.diffusion_process import (
    DiffusionProcess,
    GuidedUNet,
    Noise,
    Prediction,
    Schedule,
    checkerboard,
    noise_field,
)
from tests.models.factories import randomise_zero_parameters

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
NOISES: tuple[Noise, ...] = get_args(Noise)
MONAI_NAMES = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(3, 1, 6, 8, generator=generator(seed)) for seed in (1, 2))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_many_small_steps_have_the_moments_of_one_large_step(schedule: Schedule) -> None:
    process = DiffusionProcess(1000, schedule, "epsilon")
    alpha_bar = process.alpha_bar.double()
    signal, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for t in range(1, 1001):  # q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t)
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        signal, variance = (1 - beta).sqrt() * signal, (1 - beta) * variance + beta
        torch.testing.assert_close(signal**2, alpha_bar[t])
        torch.testing.assert_close(variance, 1 - alpha_bar[t])


@pytest.mark.parametrize("t", [1, 250, 1000])
def test_noisy_images_have_the_mean_and_variance_of_the_closed_form(t: int) -> None:
    process = DiffusionProcess(1000, "linear", "epsilon")
    x0 = torch.full((1, 1, 400, 400), 3.0)
    noise = noise_field("gaussian", 1, (400, 400), (1, 1), 1, generator())
    noisy = process.add_noise(x0, noise, torch.tensor([t]))
    alpha_bar = math.prod(1 - (1e-4 + (2e-2 - 1e-4) * s / 999) for s in range(t))
    assert noisy.mean() == pytest.approx(3 * math.sqrt(alpha_bar), abs=0.01)
    assert noisy.var() == pytest.approx(1 - alpha_bar, rel=0.02)


def test_simulated_steps_have_the_moments_of_the_closed_form() -> None:
    process, rng = DiffusionProcess(1000, "linear", "epsilon"), generator()
    x = torch.full((20000,), 2.0)
    for t in range(1, 301):
        beta = 1 - process.alpha_bar[t] / process.alpha_bar[t - 1]
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=rng)
    alpha_bar = float(process.alpha_bar[300])
    assert x.mean() == pytest.approx(2 * math.sqrt(alpha_bar), abs=0.03)
    assert x.var() == pytest.approx(1 - alpha_bar, rel=0.04)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [50, 1000])
def test_processes_of_any_length_start_with_the_image_and_end_in_noise(schedule: Schedule, timesteps: int) -> None:
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
def test_every_prediction_determines_image_and_noise(schedule: Schedule, prediction: Prediction) -> None:
    process = DiffusionProcess(1000, schedule, prediction)
    (x0, noise), t = images_and_noise(), torch.tensor([20, 300, 800])
    noisy = process.add_noise(x0, noise, t)
    predicted = process.predict_x0_and_noise(process.target(x0, noise, t), noisy, t)
    torch.testing.assert_close(predicted, (x0, noise), atol=1e-4, rtol=1e-4)


def test_v_and_the_noisy_image_are_a_rotation_of_image_and_noise() -> None:
    process = DiffusionProcess(1000, "linear", "v")
    (x0, noise), t = images_and_noise(), torch.tensor([1, 300, 1000])
    alpha_bar = process.alpha_bar[t].reshape(3, 1, 1, 1)
    v = process.target(x0, noise, t)
    torch.testing.assert_close(v, alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0)
    noisy = process.add_noise(x0, noise, t)
    torch.testing.assert_close(v**2 + noisy**2, x0**2 + noise**2)  # a rotation


def test_add_noise_and_v_agree_with_monai() -> None:
    process, monai = DiffusionProcess(1000, "linear", "v"), DDPMScheduler(1000)
    (x0, noise), t = images_and_noise(), torch.tensor([1, 300, 1000])
    torch.testing.assert_close(process.add_noise(x0, noise, t), monai.add_noise(x0, noise, t - 1))
    torch.testing.assert_close(process.target(x0, noise, t), monai.get_velocity(x0, noise, t - 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_ddim_step_agrees_with_monai(prediction: Prediction) -> None:
    process = DiffusionProcess(1000, "linear", prediction)
    monai = DDIMScheduler(1000, clip_sample=False, prediction_type=MONAI_NAMES[prediction])
    monai.set_timesteps(10)  # steps of 100
    noisy, output = images_and_noise()
    t = torch.full((3,), 500)
    predicted = process.predict_x0_and_noise(output, noisy, t)
    expected, expected_x0 = monai.step(output, 499, noisy)
    torch.testing.assert_close(process.add_noise(*predicted, t - 100), expected)
    torch.testing.assert_close(predicted[0], expected_x0)


def test_ddim_timesteps_decrease_strictly_to_0() -> None:
    t = DiffusionProcess(1000, "linear", "sample").ddim_timesteps(torch.tensor([7, 250, 1000]), 7)
    assert t.shape == (8, 3)
    assert t[0].tolist() == [7, 250, 1000]
    assert t[-1].tolist() == [0, 0, 0]
    assert (t.diff(dim=0) < 0).all()


def test_the_process_adds_nothing_to_the_state_dict() -> None:
    assert not DiffusionProcess(1000, "linear", "sample").state_dict()


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("shape", [(96, 80), (32, 40, 24)])
def test_noise_has_mean_zero_and_standard_deviation_one(kind: Noise, shape: tuple[int, ...]) -> None:
    noise = noise_field(kind, 2, shape, [8.0] * len(shape), 2, generator())
    assert noise.shape == (2, 1, *shape)
    torch.testing.assert_close(noise.flatten(1).mean(1), torch.zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(2), atol=0.03, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coarse", "simplex"])
def test_noise_has_the_requested_grain(kind: Noise) -> None:
    def autocorrelation(distance: int, grain: float) -> float:
        noise = noise_field(kind, 8, (128, 128), (grain, grain), 1, generator())
        return float((noise[..., distance:] * noise[..., :-distance]).mean())

    assert autocorrelation(1, 16.0) > 0.95
    assert abs(autocorrelation(32, 16.0)) < 0.2
    assert autocorrelation(2, 16.0) > autocorrelation(2, 6.0)


def test_nodes_of_coarse_noise_are_placed_at_random() -> None:
    node_offsets = set()
    for seed in range(6):
        noise = noise_field("coarse", 1, (64, 64), (16, 16), 1, generator(seed))
        curvature = noise[0, 0].diff(n=2, dim=1).abs().sum(0)
        node_offsets.add(int(curvature.argmax()) % 16)
    assert len(node_offsets) > 2


def unet(shape: tuple[int, ...], code_size: int = 0, factor: int = 2) -> GuidedUNet:
    torch.manual_seed(0)
    network = GuidedUNet(shape, 2, 1, (8, 16), factor, code_size)
    randomise_zero_parameters(network)
    return network


@pytest.mark.parametrize("shape", [(17, 21), (3, 5), (9, 11, 6)])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_unet_pads_and_crops_images_of_any_shape(shape: tuple[int, ...], factor: int) -> None:
    network = unet(shape, 4, factor)
    code = network.encode_context(torch.randn(1, 1, *shape))
    assert network(torch.randn(1, 2, *shape), torch.tensor([3]), code).shape == (1, 1, *shape)


def test_the_timestep_and_the_context_code_change_the_prediction() -> None:
    network = unet((16, 16), code_size=4)
    inputs, t = torch.randn(1, 2, 16, 16), torch.tensor([3])
    code = network.encode_context(inputs[:, :1])
    assert code is not None
    assert code.shape == (1, 4)
    prediction = network(inputs, t, code)
    assert not torch.allclose(prediction, network(inputs, t + 500, code))
    assert not torch.allclose(prediction, network(inputs, t, code + 1))


def test_the_unet_without_a_context_code_has_no_encoder() -> None:
    network = unet((16, 16))
    assert network.encode_context(torch.randn(1, 1, 16, 16)) is None


@pytest.mark.parametrize("shape", [(30, 41), (13, 22, 17)])
@pytest.mark.parametrize("colours", [1, 2, 4])
def test_every_voxel_has_one_colour_and_all_colours_are_similarly_frequent(
    shape: tuple[int, ...], colours: int
) -> None:
    colour = checkerboard(shape, [4.0] * len(shape), colours, torch.zeros(2, len(shape)))
    assert colour.shape == (2, 1, *shape)
    counts = colour.flatten().bincount()
    assert len(counts) == colours
    assert counts.min() > 0.75 * counts.max()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("colours", [2, 4])
def test_patches_that_share_a_face_differ_in_colour(dims: int, colours: int) -> None:
    colour = checkerboard([12] * dims, [3.0] * dims, colours, torch.zeros(1, dims))[0, 0]
    for axis in range(dims):
        patches = colour.index_select(axis, torch.arange(1, 12, 3))
        assert (patches.diff(dim=axis) != 0).all()
        patch = colour.unflatten(axis, (4, 3))
        assert (patch == patch.narrow(axis + 1, 0, 1)).all()


def test_patches_of_four_colours_in_2d_do_not_touch_at_corners() -> None:
    colour = checkerboard((8, 8), (1.0, 1.0), 4, torch.zeros(1, 2))[0, 0]
    assert (colour[1:, 1:] != colour[:-1, :-1]).all()
    assert (colour[1:, :-1] != colour[:-1, 1:]).all()


def test_an_origin_shifts_the_checkerboard_of_one_image() -> None:
    board, shifted = checkerboard((12, 12), (4.0, 4.0), 2, torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert torch.equal(shifted[0, :-2], board[0, 2:])


@pytest.mark.parametrize("shape", [(7, 10), (5, 6, 7)])
@pytest.mark.parametrize("colours", [2, 4])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_colours_cover_every_position_once_and_neighbouring_patches_differ(
    shape: tuple[int, ...], colours: int, side: int
) -> None:
    board = checkerboard(shape, [side] * len(shape), colours, torch.zeros((1, len(shape)), dtype=torch.long))
    assert board.shape == (1, 1, *shape)
    assert torch.equal(
        sum(((board == k).int() for k in range(colours)), torch.tensor(0)), torch.ones_like(board).int()
    )
    for axis in range(2, 2 + len(shape)):
        neighbours = board.narrow(axis, side, board.shape[axis] - side)
        assert (neighbours != board.narrow(axis, 0, neighbours.shape[axis])).all()


def test_integer_origins_shift_the_checkerboard_of_each_image() -> None:
    boards = checkerboard((8, 8), (2, 2), 2, torch.tensor([[0, 0], [1, 0], [2, 2]]))
    assert torch.equal(boards[1, :, :-1], boards[0, :, 1:])
    assert torch.equal(boards[2], boards[0])
