"""A diffusion model's U-Net that may be told a code of the image. A building block, not a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet, Regressor
from torch import Tensor, nn

from anomaly.models.components.network import GROUPS, crop, pad, padded_shape
from anomaly.models.components.space_to_depth import depth_to_space, space_to_depth


class GuidedUNet(nn.Module):
    """MONAI's diffusion U-Net on folded images.

    The code, of an encoder that sees the clean image, is added to the embedding of the timestep and so reaches
    every residual block (Behrendt et al. 2023, "Guided reconstruction with conditioned diffusion models").

    Parameters
    ----------
    shape
        S, of the images.
    in_channels, out_channels
        Of the images given and predicted; the clean ones have ``out_channels``.
    channels
        Of the U-Net's levels, multiples of 8.
    fold
        Neighbouring voxels along each axis that become channels.
    code_size
        Length of the code; 0 = none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        fold: int,
        code_size: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.fold, dims = shape, fold, len(shape)
        smallest = fold * 2 ** (len(channels) - 1)
        self.padded = padded_shape(shape, smallest, least=2 * smallest)
        unet: Any = DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=in_channels * fold**dims,
            out_channels=out_channels * fold**dims,
            num_res_blocks=1,
            channels=channels,
            attention_levels=[False] * len(channels),  # it attends at the coarsest level all the same
            norm_num_groups=GROUPS,
            num_head_channels=channels[-1],
            num_class_embeds=1 if code_size else None,
        )
        self.encoder: nn.Module | None = None
        if code_size:
            # What MONAI adds for the class of an image.
            unet.class_embedding = nn.Linear(code_size, 4 * channels[0])
            self.encoder = Regressor(
                in_shape=(out_channels * fold**dims, *(n // fold for n in self.padded)),
                out_shape=(code_size,),
                channels=channels,
                strides=[2] * len(channels),
                num_res_units=0,
                norm=("group", {"num_groups": GROUPS}),
            )
        self.unet: nn.Module = unet
        if dims == 2:
            # A quarter faster on a CPU. torch's annotations do not know this argument.
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, shown: Tensor, t: Tensor, code: Tensor | None = None) -> Tensor:
        """Return the prediction ``(B, out_channels, *S)`` for ``(B, in_channels, *S)`` at timesteps ``(B,)``."""
        output = self.unet(self._folded(shown), t, class_labels=code).float()
        return crop(depth_to_space(output, self.fold), self.shape)

    def code(self, clean: Tensor) -> Tensor | None:
        """Return the code ``(B, code_size)`` of clean images, where there is an encoder."""
        if self.encoder is None:
            return None
        code: Tensor = self.encoder(self._folded(clean)).float()
        return code

    def _folded(self, images: Tensor) -> Tensor:
        return space_to_depth(pad(images, self.padded), self.fold)
