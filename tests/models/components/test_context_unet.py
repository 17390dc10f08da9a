from __future__ import annotations

import math

import pytest
import torch

from anomaly.core.image_views import ImageView
from anomaly.models.components.context_unet import (
    ContextUNetSettings,
    add_context_channels,
    change_logit_loss,
    change_target,
    context_unet,
    healthy_mean_and_sd,
    predict,
    signed_change_logit,
)
from tests.models.factories import healthy_cohort, randomise_zero_parameters

SMALL = {"family": "any", "features": (8, 8, 8, 8, 16, 8)}


@pytest.mark.parametrize(
    ("view", "mirror", "atlas", "expected"),
    [
        ({"kind": "volume"}, True, True, 4),
        ({"kind": "volume"}, False, True, 3),
        ({"kind": "slice", "neighbours": 1}, True, False, 6),
        ({"kind": "slice", "neighbours": 1}, False, False, 3),
    ],
)
def test_the_context_has_the_number_of_channels_in_the_settings(
    view: dict[str, object], mirror: bool, atlas: bool, expected: int
) -> None:
    settings = ContextUNetSettings(**SMALL, view=ImageView.model_validate(view), mirror=mirror, atlas=atlas)
    images = torch.rand(2, settings.view.channels, *[6] * settings.view.spatial_dims)
    mean = torch.rand(1, 1, 6, 6, 6) if atlas else None
    assert settings.in_channels == expected
    assert add_context_channels(images, mirror, mean, mean).shape[1] == expected


def test_the_context_is_the_mirror_image_the_mean_and_a_clipped_z_score() -> None:
    images, mean, sd = (
        torch.zeros(1, 1, 3, 1, 1),
        torch.full((1, 1, 3, 1, 1), 0.5),
        torch.full((1, 1, 3, 1, 1), 0.05),
    )
    images[0, 0, :, 0, 0] = torch.tensor([0.8, 0.0, 9.0])
    _, mirrored, healthy, z = add_context_channels(images, True, mean, sd)[0, :, :, 0, 0]
    torch.testing.assert_close(mirrored, torch.tensor([9.0, 0.0, 0.8]))
    torch.testing.assert_close(healthy, torch.full((3,), 0.5))
    torch.testing.assert_close(z, torch.tensor([1.0, 0.0, 2.0]))  # SD of 3; background; clipped


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("shape", [(17, 19), (5, 18, 33)])
def test_images_of_any_shape_keep_it_and_an_untrained_network_predicts_0(
    factor: int, shape: tuple[int, ...]
) -> None:
    view = ImageView(kind="slice" if len(shape) == 2 else "volume")
    settings = ContextUNetSettings(**SMALL, view=view, mirror=False, atlas=False, space_to_depth=factor)
    network = context_unet(settings, 2, 3)
    inputs = torch.rand(1, 2, *shape)
    output = predict(network, inputs, factor)
    assert output.shape == (1, 3, *shape)
    assert not output.any()
    randomise_zero_parameters(network)
    assert predict(network, inputs, factor).any()


def test_the_healthy_mean_and_sd_are_those_of_the_scans() -> None:
    cohort = healthy_cohort(4)
    voxels = torch.stack([torch.from_numpy(scan) for scan, _ in cohort.volumes])
    mean, sd = healthy_mean_and_sd(cohort)
    torch.testing.assert_close(mean[0, 0], voxels.mean(0))
    torch.testing.assert_close(sd[0, 0], voxels.std(0, correction=0), atol=1e-5, rtol=1e-4)


def test_the_target_is_the_size_of_a_local_change_towards_dark_or_bright() -> None:
    difference = torch.tensor([-0.2, -0.05, 0.0, 0.03, 0.5, 0.5]).reshape(1, 1, 6, 1)
    changed = torch.tensor([1.0, 1.0, 1.0, 0.5, 1.0, 0.01]).reshape(1, 1, 6, 1)  # the last one is noise only
    dark, bright = change_target(difference, changed)[0, :, :, 0]
    torch.testing.assert_close(dark, torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(bright, torch.tensor([0.0, 0.0, 0.0, 0.3, 1.0, 0.0]))


def test_the_loss_adds_both_cross_entropies_inside_the_mask() -> None:
    logits, target = torch.zeros(1, 2, 2, 2), torch.rand(1, 2, 2, 2)
    mask = torch.tensor([[True, False], [True, True]]).expand(1, 1, 2, 2)
    torch.testing.assert_close(change_logit_loss(logits, target, mask), torch.tensor(2 * math.log(2)))
    logits[..., 0, 1] = 100.0  # outside the mask
    torch.testing.assert_close(change_logit_loss(logits, target, mask), torch.tensor(2 * math.log(2)))


def test_the_change_logit_is_negative_where_an_image_is_too_dark() -> None:
    logits = torch.tensor([2.0, -3.0]).reshape(1, 2, 1, 1)  # too dark, too bright
    assert signed_change_logit(logits).item() == -5.0
