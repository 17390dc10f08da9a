"""The U-Net of the families that undo synthetic changes. A building block, not a family.

Beside the image it sees what a radiologist compares with: the mirror image (the other hemisphere), the healthy mean
at the place and the z-score against it. It works on folded voxels, and starts by predicting nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.running_moments import RunningMoments
from anomaly.models.base import GROUPS, ModelSettings, Width, crop, pad, padded_shape
from anomaly.models.components.space_to_depth import FullPrecision, depth_to_space, space_to_depth

HALVINGS = 4  # of MONAI's BasicUNet
SD_FLOOR = 0.05  # of the z-score that the network is shown, intensity units
FAR = 3.0  # healthy standard deviations that the network is shown as 1


class ContextUNetSettings(ModelSettings):
    """How large the network is and what it sees beside the image."""

    view: ImageView = ImageView(kind="volume")
    features: tuple[Width, Width, Width, Width, Width, Width] = Field(
        (16, 16, 48, 96, 96, 16), description="channels of the five levels and of the last layer, multiples of 8"
    )
    space_to_depth: Literal[1, 2] = Field(
        2, description="2: every 2×2(×2) voxels become channels, four (eight) times fewer positions to compute"
    )
    mirror: bool = Field(
        True, description="also show the left-right mirror image; not for patches or sagittal slices"
    )
    atlas: bool = Field(
        True, description="also show the healthy mean at each place and the z-score; only with view kind volume"
    )

    @model_validator(mode="after")
    def _fits_the_view(self) -> ContextUNetSettings:
        if self.features[HALVINGS] < 2 * GROUPS:
            raise ValueError(f"the deepest level may be a single voxel and needs {2 * GROUPS} features or more")
        if self.mirror and (self.view.kind == "patch" or (self.view.kind == "slice" and self.view.axis == 0)):
            raise ValueError("mirror needs images that hold both sides; set mirror to false for this view")
        if self.atlas and self.view.kind != "volume":
            raise ValueError("atlas needs view kind 'volume', because only there a voxel knows its place")
        return self

    @property
    def shown(self) -> int:
        """Number of channels that :func:`add_context_channels` returns."""
        return self.view.channels * (1 + self.mirror) + 2 * self.atlas


def context_unet(settings: ContextUNetSettings, in_channels: int, out_channels: int) -> nn.Module:
    """Return a U-Net on folded channels that starts by predicting 0; see :func:`predict`."""
    fold = settings.space_to_depth**settings.view.spatial_dims
    network: Any = BasicUNet(
        spatial_dims=settings.view.spatial_dims,
        in_channels=in_channels * fold,
        out_channels=out_channels * fold,
        features=settings.features,
        norm=("group", {"num_groups": GROUPS}),
        act=("leakyrelu", {"negative_slope": 0.1, "inplace": True}),
        upsample="nontrainable",
    )
    network.down_4 = FullPrecision(network.down_4)
    network.upcat_4 = FullPrecision(network.upcat_4)
    nn.init.zeros_(network.final_conv.weight)
    nn.init.zeros_(network.final_conv.bias)
    built: nn.Module = network
    return built


def predict(network: nn.Module, shown: Tensor, fold: int) -> Tensor:
    """Return what the network says ``(B, out, *S)`` of images ``(B, in, *S)`` of any shape, float32."""
    shape = padded_shape(shown.shape[2:], fold, least=fold * 2**HALVINGS)
    output = network(space_to_depth(pad(shown, shape), fold))
    return crop(depth_to_space(output.float(), fold), shown.shape[2:])


def add_context_channels(images: Tensor, mirror: bool, mean: Tensor | None, sd: Tensor | None) -> Tensor:
    """Return images ``(B, C, *S)`` with what they are compared with as further channels.

    Parameters
    ----------
    mirror
        Whether to add the left-right mirror image.
    mean, sd
        ``(1, 1, I, J, K)`` of healthy scans (:func:`healthy_mean_and_sd`); None where images have no fixed place.
    """
    shown = [images]
    if mirror:
        shown.append(images.flip(2))
    if mean is not None and sd is not None:
        z = (images - mean) / (sd + SD_FLOOR)
        shown += [mean.expand_as(images), (z.clamp(-2 * FAR, 2 * FAR) / FAR) * (images != 0)]
    return torch.cat(shown, dim=1)


def healthy_mean_and_sd(train: VolumeSource) -> tuple[Tensor, Tensor]:
    """Return the voxelwise mean and SD ``(1, 1, I, J, K)`` of healthy scans."""
    moments = RunningMoments(train.grid.shape)
    for index in range(len(train)):
        moments.add(train[index][0])
    mean, sd = (torch.from_numpy(values).float()[None, None] for values in (moments.mean(), moments.sd()))
    return mean, sd
