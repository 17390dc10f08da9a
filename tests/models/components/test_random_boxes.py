from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anomaly.models.components.random_boxes import hide_boxes


def scans(*shape: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    mask = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    mask[:, :, 4:-4, 4:-4] = True
    return (torch.rand(shape, generator=rng) + 0.5) * mask, mask


@pytest.mark.parametrize("shape", [(40, 1, 24, 20), (40, 3, 24, 20), (20, 1, 16, 20, 12)])
def test_boxes_hide_some_of_the_images_and_only_inside_the_mask(shape: tuple[int, ...]) -> None:
    images, mask = scans(*shape)
    inputs, has_boxes = hide_boxes(images, mask, 0.5, torch.Generator().manual_seed(1))
    changed = (inputs != images).flatten(1).any(1)
    assert 0.2 < has_boxes.float().mean() < 0.8
    assert not (changed & ~has_boxes).any()
    assert (changed & has_boxes).sum() >= 0.7 * has_boxes.sum()  # a box may miss the mask
    assert torch.equal(torch.where(mask, 0.0, inputs), torch.where(mask, 0.0, images))
    assert inputs.min() >= images.min()
    assert inputs.max() <= images.max()


def test_a_box_has_one_intensity_and_covers_all_channels() -> None:
    images, mask = scans(30, 3, 24, 20)
    inputs, _ = hide_boxes(images, mask, 1.0, torch.Generator().manual_seed(2))
    changed = inputs != images
    assert torch.equal(changed.any(1), changed.all(1))
    assert all(len(image[where].unique()) <= 3 for image, where in zip(inputs, changed, strict=True))


@pytest.mark.parametrize(("probability", "number"), [(0.0, 0), (1.0, 10)])
def test_the_probability_is_that_of_having_boxes(probability: float, number: int) -> None:
    images, mask = scans(10, 1, 24, 20)
    inputs, has_boxes = hide_boxes(images, mask, probability, torch.Generator().manual_seed(3))
    assert int(has_boxes.sum()) == number
    assert torch.equal(inputs, images) == (number == 0)
