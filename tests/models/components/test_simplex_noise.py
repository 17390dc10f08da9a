from __future__ import annotations

import pytest
import torch

from anomaly.models.components.simplex_noise import _noise, simplex_field


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(40, 50), (20, 24, 16)])
def test_a_field_has_mean_zero_and_standard_deviation_one(shape: tuple[int, ...]) -> None:
    field = simplex_field(3, shape, [8.0] * len(shape), generator())
    assert field.shape == (3, 1, *shape)
    torch.testing.assert_close(field.flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(field.flatten(1).std(1), torch.ones(3))


@pytest.mark.parametrize("dims", [2, 3])
def test_noise_is_continuous_across_the_borders_of_simplices(dims: int) -> None:
    line = torch.linspace(0, 9, 4001).expand(1, dims, -1) * torch.tensor([1.0, 0.7, 0.4])[:dims, None]
    noise = _noise(line, generator())
    assert noise.abs().max() > 0.001
    assert noise.diff(dim=1).abs().max() < 0.03 * noise.abs().max()


def test_noise_is_zero_at_lattice_points() -> None:
    lattice = torch.tensor([[0.0, 1.0, 3.0, 2.0], [0.0, 0.0, 1.0, 5.0]])
    unskewed = lattice - (1 - 1 / 3**0.5) / 2 * lattice.sum(dim=0)
    torch.testing.assert_close(_noise(unskewed[None] + 1e-6, generator()), torch.zeros(1, 4), atol=1e-6, rtol=0)


def test_a_larger_grain_is_smoother() -> None:
    fine, coarse = (simplex_field(2, (64, 64), [size] * 2, generator(), octaves=1) for size in (4.0, 16.0))
    assert coarse.diff(dim=-1).abs().mean() < 0.4 * fine.diff(dim=-1).abs().mean()


def test_images_of_a_batch_differ_and_the_generator_decides() -> None:
    first, again = (simplex_field(2, (16, 16), [4.0, 4.0], generator()) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, simplex_field(2, (16, 16), [4.0, 4.0], generator(1)))
