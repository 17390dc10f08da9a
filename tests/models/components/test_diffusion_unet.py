from __future__ import annotations

import pytest
import torch

from anomaly.models.components.diffusion_unet import GuidedUNet
from tests.models.factories import awaken


def new(shape: tuple[int, ...], code_size: int = 0, fold: int = 2) -> GuidedUNet:
    torch.manual_seed(0)
    network = GuidedUNet(shape, 2, 1, (8, 16), fold, code_size)
    awaken(network)
    return network


@pytest.mark.parametrize("shape", [(17, 21), (3, 5), (9, 11, 6)])
@pytest.mark.parametrize("fold", [1, 2])
def test_images_of_any_shape_are_padded_and_cropped(shape: tuple[int, ...], fold: int) -> None:
    network = new(shape, 4, fold)
    code = network.code(torch.randn(1, 1, *shape))
    assert network(torch.randn(1, 2, *shape), torch.tensor([3]), code).shape == (1, 1, *shape)


def test_the_timestep_and_the_code_change_the_prediction() -> None:
    network = new((16, 16), code_size=4)
    shown, t = torch.randn(1, 2, 16, 16), torch.tensor([3])
    code = network.code(shown[:, :1])
    assert code is not None
    assert code.shape == (1, 4)
    prediction = network(shown, t, code)
    assert not torch.allclose(prediction, network(shown, t + 500, code))
    assert not torch.allclose(prediction, network(shown, t, code + 1))


def test_without_a_code_there_is_no_encoder() -> None:
    network = new((16, 16))
    assert network.code(torch.randn(1, 1, 16, 16)) is None
