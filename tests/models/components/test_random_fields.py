from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from anomaly.models.components.random_fields import host_generator, sample, smooth_field, upsample


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_host_generator_repeats_and_its_streams_differ() -> None:
    generator = rng(5)
    first, again, other = (host_generator(generator, stream).random() for stream in (0, 0, 1))
    torch.rand(1, generator=generator)
    assert first == again == host_generator(generator, 0).random()
    assert first != other


@pytest.mark.parametrize("shape", [(7, 9), (5, 8, 6)])
def test_sampling_is_linear_interpolation_with_zeros_outside(shape: tuple[int, ...]) -> None:
    images = torch.rand((2, 3, *shape), generator=rng()) + 1
    size = torch.tensor(shape).reshape(1, -1, *[1] * len(shape))
    positions = torch.rand((2, len(shape), *shape), generator=rng(1)) * (size + 6) - 3
    grid = ((positions * 2 + 1) / size - 1).flip(1).movedim(1, -1)
    expected = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    assert (expected == 0).any()
    torch.testing.assert_close(sample(images, positions), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(7, 9), (5, 8, 6)])
def test_upsampling_is_linear_interpolation(shape: tuple[int, ...]) -> None:
    coarse = torch.randn((2, 3, *[3] * len(shape)), generator=rng())
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    expected = torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)
    torch.testing.assert_close(upsample(coarse, shape), expected, rtol=1e-4, atol=1e-5)


def test_smooth_fields_are_standard_normal_at_their_nodes() -> None:
    field = smooth_field(64, (17, 17), (4.0, 4.0), rng())
    assert abs(float(field[:, :, ::4, ::4].std()) - 1) < 0.1
    steps = field[:, :, 1:] - field[:, :, :-1]
    assert float(steps.abs().max()) < 2.0
