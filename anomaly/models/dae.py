"""Denoising autoencoder: a U-Net that undoes synthetic changes.

Idea. A healthy image x is corrupted to x̃ = c(x); the network learns to give back x. It thereby learns what
belongs at a place given everything around it. In a new scan it undoes what does not look healthy; what it undid
is the evidence:

    r = x − x̂,    x̂ = x + g_θ(x),    L = Σ w (x̂(x̃) − x)² / Σ w,    w = mask · (1 + λ · changed)

The network predicts the correction g, so that an untrained network changes nothing. The skip connections of the
U-Net keep fine anatomy; the corruption must therefore be coarse and local, or the network learns to pass
lesions through.

Source: Kascenas, Pugeault & O'Neil 2022, "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain
MRI" (coarse noise); Naval Marimont et al. 2023, "DISYRE" (undoing many kinds of synthetic change).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.networks.nets import BasicUNet
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.views import View, VolumeSource
from anomaly.models.base import ModelSettings
from anomaly.models.corruption import CorruptionSettings, Spacing, corrupt
from anomaly.models.network import NetworkDetector, centre, crop, masked_mean, pad, padded_shape
from anomaly.training.protocols import Moment

HALVINGS = 4  # of MONAI's BasicUNet
GROUPS = 8


class DenoisingSettings(ModelSettings):
    """Settings of the denoising autoencoder."""

    family: Literal["dae"] = "dae"
    view: View = View(kind="slice", axis=2, neighbours=2)
    features: tuple[int, int, int, int, int, int] = Field(
        (32, 32, 64, 96, 96, 32), description="channels of the five levels and of the last layer, multiples of 8"
    )
    space_to_depth: Literal[1, 2] = Field(
        2, description="2: every 2×2(×2) voxels become channels, four (eight) times fewer positions to compute"
    )
    mirror: bool = Field(
        True, description="also show the left-right mirror image; not for patches or sagittal slices"
    )
    healthy_mean: bool = Field(
        False, description="also show the voxelwise healthy mean; only with view kind volume"
    )
    changed_weight: float = Field(3.0, ge=0, description="λ: extra weight of the loss inside local changes")
    corruption: CorruptionSettings = CorruptionSettings()

    @model_validator(mode="after")
    def _fits_the_view(self) -> DenoisingSettings:
        if any(n % GROUPS for n in self.features):
            raise ValueError(f"features must be multiples of {GROUPS}")
        if self.features[HALVINGS] < 2 * GROUPS:
            raise ValueError(f"the deepest level may be a single voxel and needs {2 * GROUPS} features or more")
        if self.mirror and (self.view.kind == "patch" or (self.view.kind == "slice" and self.view.axis == 0)):
            raise ValueError("mirror needs images that hold both sides; set mirror to false for this view")
        if self.healthy_mean and self.view.kind != "volume":
            raise ValueError("healthy_mean needs view kind 'volume', because only there a voxel knows its place")
        return self


class DenoisingAutoencoder(NetworkDetector):
    """Residual of a U-Net that undoes synthetic changes.

    Attributes
    ----------
    mean
        ``(1, 1, I, J, K)`` healthy mean, where the settings ask for it.
    """

    family = "dae"
    Settings: ClassVar[type[ModelSettings]] = DenoisingSettings
    settings: DenoisingSettings
    mean: Tensor | None

    def build(self) -> nn.Module:
        """Return a U-Net on the (folded) input channels that starts by predicting no correction."""
        settings = self.settings
        shape = self.grid.shape if settings.healthy_mean else None
        self.register_buffer("mean", None if shape is None else torch.zeros(1, 1, *shape))
        fold = settings.space_to_depth**self.view.spatial_dims
        shown = self.view.channels * (1 + settings.mirror) + settings.healthy_mean
        network: nn.Module = BasicUNet(
            spatial_dims=self.view.spatial_dims,
            in_channels=shown * fold,
            out_channels=fold,
            features=settings.features,
            norm=("group", {"num_groups": GROUPS}),
            act=("leakyrelu", {"negative_slope": 0.1, "inplace": True}),
            upsample="nontrainable",
        )
        final: Any = network.final_conv
        nn.init.zeros_(final.weight)
        nn.init.zeros_(final.bias)
        return network

    def check(self, train: VolumeSource) -> None:
        """Refuse images too small for the U-Net's halvings."""
        del train
        if min(self.image_shape) < 2:
            raise TrainingError(f"images of shape {self.image_shape} are too thin for a U-Net; expected ≥ 2 voxels")

    def prepare(self, train: VolumeSource) -> None:
        """Learn the voxelwise healthy mean, where the network is shown it."""
        if self.mean is None:
            return
        total = torch.zeros(self.grid.shape, dtype=torch.float64)
        for index in range(len(train)):
            total += torch.tensor(train[index][0])
        self.mean = (total / len(train)).float()[None, None]

    def loss(self, images: Tensor, mask: Tensor, at: Moment) -> dict[str, Tensor]:
        """Return the weighted squared error of undoing a random corruption."""
        with torch.no_grad():
            corrupted, changed = corrupt(images, mask, self.slab_spacing, self.settings.corruption, at.rng)
            weight = mask * (1 + self.settings.changed_weight * changed)
        error = centre(corrupted) + self.correction(corrupted) - centre(images)
        return {"loss": masked_mean(error.float() ** 2, weight)}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return x + g(x)."""
        del mask
        return centre(images) + self.correction(images)

    def correction(self, images: Tensor) -> Tensor:
        """Return g(x) ``(B, 1, *S)`` for images ``(B, C, *S)``."""
        shown = [images]
        if self.settings.mirror:
            shown.append(images.flip(2))
        if self.mean is not None:
            shown.append(self.mean.expand_as(images))
        fold = self.settings.space_to_depth
        shape = padded_shape(images.shape[2:], fold, least=fold * 2**HALVINGS)
        out = self.network(space_to_depth(pad(torch.cat(shown, dim=1), shape), fold))
        return crop(depth_to_space(out, fold), images.shape[2:])

    @property
    def slab_spacing(self) -> Spacing:
        """Voxel size in mm along the axes of the slab (slices) or volume that the corruption works on."""
        i, j, k = self.grid.spacing
        if self.view.kind != "slice":
            return i, j, k
        across = (i, j, k)[self.view.axis]
        within = [s for axis, s in enumerate((i, j, k)) if axis != self.view.axis]
        return across, within[0], within[1]


def space_to_depth(images: Tensor, factor: int) -> Tensor:
    """Return ``(B, C·fᴰ, *S/f)``: neighbouring voxels as channels, losing nothing."""
    if factor == 1 or images.ndim == 4:
        return F.pixel_unshuffle(images, factor)
    b, c, i, j, k = images.shape
    folded = images.reshape(b, c, i // factor, factor, j // factor, factor, k // factor, factor)
    return folded.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, -1, i // factor, j // factor, k // factor)


def depth_to_space(images: Tensor, factor: int) -> Tensor:
    """Undo :func:`space_to_depth`."""
    if factor == 1 or images.ndim == 4:
        return F.pixel_shuffle(images, factor)
    b, c, i, j, k = images.shape
    unfolded = images.reshape(b, c // factor**3, factor, factor, factor, i, j, k)
    return unfolded.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, i * factor, j * factor, k * factor)
