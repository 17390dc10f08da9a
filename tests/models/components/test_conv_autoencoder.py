from __future__ import annotations

import pytest
import torch
from monai.losses import SSIMLoss
from torch import Tensor

from anomaly.models.base import apply_mask
from anomaly.models.components.conv_autoencoder import LOSSES, LossName, dissimilarity, l1, l2, multiscale, ssim

SHAPES = [(19, 22), (12, 9, 13)]
NAMES: list[LossName] = ["l2", "l1", "ssim", "multiscale"]


@pytest.fixture(params=SHAPES, ids=["2D", "3D"])
def image_and_mask(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Return two smooth images and ellipsoids about their centres."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in request.param], indexing="ij")
    mask = (sum(axis**2 for axis in axes) < 0.8).expand(2, 1, *request.param)  # type: ignore[union-attr]
    image = 0.5 + 0.2 * torch.sin(5 * axes[0]) * torch.cos(4 * axes[1])
    return apply_mask(torch.stack([image, image**2])[:, None], mask), mask


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_reconstruction_costs_nothing(name: LossName, image_and_mask: tuple[Tensor, Tensor]) -> None:
    image, mask = image_and_mask
    assert abs(float(LOSSES[name](image.clone(), image, mask))) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_only_the_inside_of_the_mask_counts(name: LossName, image_and_mask: tuple[Tensor, Tensor]) -> None:
    image, mask = image_and_mask
    reconstruction = (image + 0.1 * noise(image)).requires_grad_()
    loss = LOSSES[name](reconstruction, image, mask)
    (slope,) = torch.autograd.grad(loss, reconstruction)
    assert slope[~mask].abs().max() == 0
    assert (slope[mask] != 0).float().mean() > 0.5  # the signs of the four scales may cancel
    elsewhere = torch.where(mask, reconstruction, 7.0)
    torch.testing.assert_close(LOSSES[name](elsewhere, image, mask), loss)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_grows_with_the_error_and_an_empty_mask_costs_nothing(
    name: LossName, image_and_mask: tuple[Tensor, Tensor]
) -> None:
    image, mask = image_and_mask
    values = [float(LOSSES[name](image + size * noise(image), image, mask)) for size in (0.02, 0.05, 0.2)]
    assert 0 < values[0] < values[1] < values[2]
    assert float(LOSSES[name](image + 1, image, torch.zeros_like(mask))) == 0


def test_a_constant_error_counts_at_every_scale(image_and_mask: tuple[Tensor, Tensor]) -> None:
    image, mask = image_and_mask
    for loss, expected in ((l2, 0.09), (l1, 0.3), (multiscale, 0.3)):
        torch.testing.assert_close(loss(image - 0.3, image, mask), torch.tensor(expected))


def test_a_checkerboard_counts_at_the_finest_of_four_scales() -> None:
    board = 0.2 * (1 - 2.0 * (torch.arange(16)[:, None] + torch.arange(16)).remainder(2)).expand(1, 1, 16, 16)
    everywhere = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    torch.testing.assert_close(multiscale(board, 0 * board, everywhere), torch.tensor(0.2 / 4))


@pytest.mark.parametrize(("shape", "margin"), [((24, 26), 5), ((12, 13, 11), 3)])
def test_away_from_the_edge_the_similarity_is_that_of_monai(shape: tuple[int, ...], margin: int) -> None:
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    other = image + 0.2 * noise(image)
    everywhere = torch.ones_like(image, dtype=torch.bool)
    middle = (..., *[slice(margin, n - margin) for n in shape])
    expected = SSIMLoss(len(shape), win_size=2 * margin + 1)(other, image)
    torch.testing.assert_close(dissimilarity(other, image, everywhere)[middle].mean(), expected)


def test_the_similarity_of_flat_images_is_that_of_their_means() -> None:
    first, second = torch.full((1, 1, 32, 32), 0.4), torch.full((1, 1, 32, 32), 0.6)
    everywhere = torch.ones_like(first, dtype=torch.bool)
    expected = 1 - (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    target_slice = dissimilarity(first, second, everywhere)[0, 0, 16, 16]
    torch.testing.assert_close(target_slice, torch.tensor(expected), atol=1e-4, rtol=0)


def test_lost_structure_is_dissimilar_where_the_mean_error_is_small() -> None:
    pattern = 0.5 + 0.05 * torch.sin(torch.arange(32.0)).expand(1, 1, 32, 32)
    everywhere = torch.ones_like(pattern, dtype=torch.bool)
    flat, shifted = torch.full_like(pattern, 0.5), pattern + 0.05
    assert l1(flat, pattern, everywhere) < l1(shifted, pattern, everywhere)
    assert ssim(flat, pattern, everywhere) > 3 * ssim(shifted, pattern, everywhere)
