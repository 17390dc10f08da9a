"""U-Net that learns to undo synthetic changes, and what its two families share. A building block, not a family.

Besides the image, the network gets three images for comparison: the mirror image (the other hemisphere),
the healthy mean of each voxel and the z-score against it. It works on space-to-depth channels. An untrained network
predicts no correction.

Its second output, the change logits, predicts whether a voxel was changed:

    s = min(1, max(−d, 0) / 0.1), min(1, max(d, 0) / 0.1)     targets: too dark, too bright; d change of intensity
    L = Σ m BCE(logits, s) / Σ m                              m the mask; the two BCEs are added
    change_logit = logit of too bright − logit of too dark

Source: Tan, Hou, Batten, Qiu & Kainz 2022, "Detecting Outliers with Foreign Patch Interpolation" (a network that
predicts how much each voxel was changed).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.networks.nets import BasicUNet
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.running_moments import RunningMoments
from anomaly.models.base import NORM_GROUPS, ModelSettings, NetworkDetector, Width, crop, pad, padded_shape
from anomaly.models.components.closed_form import principal_components
from anomaly.models.components.corruption import CorruptionSettings, corrupt
from anomaly.models.components.space_to_depth import FullPrecision, depth_to_space, space_to_depth

N_HALVINGS = 4  # of MONAI's BasicUNet
SD_FLOOR = 0.05  # intensity units; added to the SD in the z-score
Z_SCORE_SCALE = 3.0  # the z-score is divided by this for the network, and clipped at ±2 after that
FULL_CHANGE = 0.1  # intensity units; the target of a change of this size or more is 1
MIN_CHANGED = 0.05  # share of a local change below which a voxel counts as unchanged
UNCHANGED_LOGIT = 3.0  # subtracted from the logits, so that an untrained network predicts no change


class ContextUNetSettings(ModelSettings):
    """Size and inputs of the network, and the synthetic changes that it learns to undo."""

    view: ImageView = ImageView(kind="volume")
    features: tuple[Width, Width, Width, Width, Width, Width] = Field(
        (16, 16, 48, 96, 96, 16), description="channels of the five levels and of the last layer, multiples of 8"
    )
    space_to_depth: Literal[1, 2] = Field(
        2, description="2: every 2×2(×2) voxels become channels, four (eight) times fewer positions to compute"
    )
    mirror: bool = Field(
        True, description="add the left-right mirror image to the input; not for patches or sagittal slices"
    )
    atlas: bool = Field(
        True, description="add the healthy mean and the z-score of each voxel to the input; only for whole volumes"
    )
    changed_weight: float = Field(3.0, ge=0, description="λ: extra weight of the loss inside local changes")
    error_sd: float = Field(0.16, gt=0, description="s: an error of this size adds ½ to the loss, intensity units")
    corruption: CorruptionSettings = Field(
        default=CorruptionSettings(), description="synthetic changes that the network learns to undo"
    )

    @model_validator(mode="after")
    def _fits_the_view(self) -> ContextUNetSettings:
        if self.features[N_HALVINGS] < 2 * NORM_GROUPS:
            raise ValueError(
                f"the deepest level may be a single voxel and needs {2 * NORM_GROUPS} features or more"
            )
        if self.mirror and (self.view.kind == "patch" or (self.view.kind == "slice" and self.view.axis == 0)):
            raise ValueError("mirror needs images that contain both sides; set mirror to false for this view")
        if self.atlas and self.view.kind != "volume":
            raise ValueError(
                "atlas needs view kind 'volume', because only whole volumes have a fixed position in the template"
            )
        return self

    @property
    def in_channels(self) -> int:
        """Number of channels that :func:`add_context_channels` returns."""
        return self.view.channels * (1 + self.mirror) + 2 * self.atlas


class ContextUNetDetector(NetworkDetector):
    """A detector whose network is a U-Net that learns to undo synthetic changes.

    Attributes
    ----------
    mean, sd
        ``(1, 1, I, J, K)`` of healthy scans; None if ``settings.atlas`` is false.
    """

    settings: ContextUNetSettings
    mean: Tensor | None
    sd: Tensor | None

    def build_unet(self, extra_channels: int, out_channels: int) -> nn.Module:
        """Register mean and SD, and return the U-Net.

        Parameters
        ----------
        extra_channels
            Input channels besides those of :func:`add_context_channels`.
        out_channels
            Number of output channels.
        """
        settings, shape = self.settings, self.grid.shape
        self.register_buffer("mean", torch.zeros(1, 1, *shape) if settings.atlas else None)
        self.register_buffer("sd", torch.ones(1, 1, *shape) if settings.atlas else None)
        return context_unet(settings, settings.in_channels + extra_channels, out_channels)

    def prepare(self, train: VolumeSource) -> None:
        """Compute the voxelwise mean and SD of healthy scans if ``settings.atlas`` is true."""
        if self.mean is not None:
            self.mean, self.sd = healthy_mean_and_sd(train)

    def corrupt_images(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return corrupted images ``(B, C, *S)`` and the share of a local change in each voxel ``(B, 1, *S)``."""
        return corrupt(images, mask, self.slab_spacing, self.settings.corruption, rng)

    def loss_weight(self, mask: Tensor, changed: Tensor) -> Tensor:
        """Return the weight of each voxel in the loss ``(B, 1, *S)``: m + λ · changed, changed is 0 outside m."""
        return torch.add(mask, changed, alpha=self.settings.changed_weight)

    def predict(self, images: Tensor, *extra: Tensor) -> Tensor:
        """Return the output of the network ``(B, out, *S)`` for images ``(B, C, *S)`` and extra input channels."""
        inputs = add_context_channels(images, self.settings.mirror, self.mean, self.sd)
        return predict(self.network, torch.cat([inputs, *extra], dim=1), self.settings.space_to_depth)


def context_unet(settings: ContextUNetSettings, in_channels: int, out_channels: int) -> nn.Module:
    """Return a U-Net on space-to-depth channels whose output is 0 before training; see :func:`predict`."""
    voxels_per_position = settings.space_to_depth**settings.view.spatial_dims
    network: Any = BasicUNet(
        spatial_dims=settings.view.spatial_dims,
        in_channels=in_channels * voxels_per_position,
        out_channels=out_channels * voxels_per_position,
        features=settings.features,
        norm=("group", {"num_groups": NORM_GROUPS}),
        act=("leakyrelu", {"negative_slope": 0.1, "inplace": True}),
        upsample="nontrainable",
    )
    network.down_4 = FullPrecision(network.down_4)
    network.upcat_4 = FullPrecision(network.upcat_4)
    nn.init.zeros_(network.final_conv.weight)
    nn.init.zeros_(network.final_conv.bias)
    built: nn.Module = network
    return built


def predict(network: nn.Module, inputs: Tensor, factor: int) -> Tensor:
    """Return the output of the network ``(B, out, *S)`` float32, for inputs ``(B, in, *S)`` of any shape S.

    Parameters
    ----------
    network
        What :func:`context_unet` returned.
    factor
        Of :func:`~anomaly.models.components.space_to_depth.space_to_depth`.
    """
    shape = padded_shape(inputs.shape[2:], factor, minimum=factor * 2**N_HALVINGS)
    output = network(space_to_depth(pad(inputs, shape), factor))
    return crop(depth_to_space(output.float(), factor), inputs.shape[2:])


def add_context_channels(images: Tensor, mirror: bool, mean: Tensor | None, sd: Tensor | None) -> Tensor:
    """Return images ``(B, C, *S)`` with the mirror image, the healthy mean and the z-score as further channels.

    Parameters
    ----------
    mirror
        Whether to add the left-right mirror image.
    mean, sd
        ``(1, 1, I, J, K)`` of healthy scans (:func:`healthy_mean_and_sd`), or None to leave out mean and z-score.
    """
    channels = [images]
    if mirror:
        channels.append(images.flip(2))
    if mean is not None and sd is not None:
        z = (images - mean) / (sd + SD_FLOOR)
        clipped = z.clamp(-2 * Z_SCORE_SCALE, 2 * Z_SCORE_SCALE) / Z_SCORE_SCALE
        channels += [mean.expand_as(images), clipped * (images != 0)]
    return torch.cat(channels, dim=1)


def healthy_mean_and_sd(train: VolumeSource) -> tuple[Tensor, Tensor]:
    """Return the voxelwise mean and SD ``(1, 1, I, J, K)`` of healthy scans."""
    moments = RunningMoments(train.grid.shape)
    for index in range(len(train)):
        moments.add(train[index][0])
    mean, sd = (torch.from_numpy(values).float()[None, None] for values in (moments.mean(), moments.sd()))
    return mean, sd


def healthy_components(train: VolumeSource, k: int) -> Tensor:
    """Return the k leading principal components ``(k, I·J·K)`` of every second healthy scan.

    Scoring learns the healthy distribution of the residual from all scans, which therefore includes scans that the
    components were not fitted to.
    """
    half = torch.stack([torch.from_numpy(train[n][0].copy()).flatten() for n in range(0, len(train), 2)])
    return principal_components(half, k)[1]


def change_target(difference: Tensor, changed: Tensor) -> Tensor:
    """Return the targets s ``(B, 2, *S)``, 0 to 1: how much a voxel became too dark, and too bright.

    Parameters
    ----------
    difference
        ``(B, 1, *S)`` corrupted minus original intensity.
    changed
        ``(B, 1, *S)`` share of a local change in each voxel, 0 to 1. Global noise is not a local change.
    """
    brighter = difference * (changed > MIN_CHANGED) / FULL_CHANGE
    return torch.cat([-brighter, brighter], dim=1).clamp_(0, 1)


def change_logit_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the cross-entropy of logits and targets, both ``(B, 2, *S)``, per voxel inside the mask."""
    inside = mask.float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight=inside, reduction="sum")
    return entropy / inside.sum().clamp_min(1)


def signed_change_logit(logits: Tensor) -> Tensor:
    """Return the change logit ``(B, 1, *S)`` of logits ``(B, 2, *S)``; negative where an image is too dark."""
    return logits[:, 1:] - logits[:, :1]
