from __future__ import annotations

import pytest
import torch

from anomaly.models.components.space_to_depth import depth_to_space, space_to_depth


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 6, 8, 4)])
@pytest.mark.parametrize("factor", [1, 2])
def test_depth_to_space_inverts_space_to_depth(shape: tuple[int, ...], factor: int) -> None:
    images = torch.arange(torch.Size(shape).numel()).float().reshape(shape)
    blocks = space_to_depth(images, factor)
    assert blocks.shape[2:] == tuple(n // factor for n in shape[2:])
    assert torch.equal(depth_to_space(blocks, factor), images)
