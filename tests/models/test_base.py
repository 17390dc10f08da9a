from __future__ import annotations

import pytest
import torch

from anomaly.core.errors import TrainingError
from anomaly.models.base import (
    StepInfo,
    apply_mask,
    crop,
    either_foreground,
    foreground_mask,
    masked_mean,
    pad,
    padded_shape,
    refuse_large_latent,
    residual,
)


@pytest.mark.parametrize(
    ("step", "share", "expected"),
    [(0, 0.2, 2.0 / 20), (9, 0.2, 1.0), (19, 0.2, 2.0), (60, 0.2, 2.0), (0, 0.0, 2.0), (49, 1.0, 1.0)],
)
def test_a_weight_rises_linearly_over_a_share_of_the_training(step: int, share: float, expected: float) -> None:
    assert StepInfo(step, 100, torch.Generator()).linear_warmup(2.0, share) == pytest.approx(expected)


def test_the_foreground_is_where_values_are_not_0() -> None:
    values = torch.tensor([-0.5, 0.0, 2.0])
    assert foreground_mask(values).tolist() == [1.0, 0.0, 1.0]
    either = either_foreground(values.reshape(1, 1, 3, 1), torch.tensor([0.0, 0.0, 1.0]).reshape(1, 1, 3, 1))
    assert either.flatten().tolist() == [True, False, True]


def test_values_outside_the_mask_are_0_even_if_they_are_not_finite() -> None:
    values = torch.tensor([1.0, torch.nan, torch.inf])
    assert apply_mask(values, torch.tensor([True, False, False])).tolist() == [1.0, 0.0, 0.0]


def test_the_residual_is_that_of_the_middle_slice_and_negative_where_it_is_dark() -> None:
    images = torch.stack([torch.full((2, 2), value) for value in (9.0, 1.0, 9.0)])[None]
    mask = torch.tensor([[True, True], [True, False]]).expand(1, 1, 2, 2)
    found = residual(images, torch.full((1, 1, 2, 2), 3.0), mask)
    assert found.flatten().tolist() == [-2.0, -2.0, -2.0, 0.0]


def test_a_mean_of_no_voxels_is_0() -> None:
    values = torch.tensor([2.0, 4.0, 9.0]).reshape(1, 1, 3, 1)
    assert masked_mean(values, torch.tensor([1.0, 1.0, 0.0]).reshape(1, 1, 3, 1)) == 3.0
    assert masked_mean(values, torch.zeros(1, 1, 3, 1)) == 0.0


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3)])
def test_cropping_inverts_padding_to_a_multiple(shape: tuple[int, ...]) -> None:
    target = padded_shape(shape, 4, minimum=8)
    assert target == (8, 8, 8)[: len(shape)]
    images = torch.rand(2, 1, *shape)
    padded = pad(images, target)
    assert padded.shape[2:] == target
    assert torch.equal(crop(padded, shape), images)
    assert padded.sum() == pytest.approx(float(images.sum()), rel=1e-5)


def test_a_latent_that_could_copy_the_image_is_refused() -> None:
    refuse_large_latent(23, 1, (4, 6))
    with pytest.raises(TrainingError, match=r"latent_size 24 is not smaller than the image \(24 voxels\)"):
        refuse_large_latent(24, 1, (4, 6))
