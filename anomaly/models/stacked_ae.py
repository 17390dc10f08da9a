"""Stacked autoencoder: its layers are trained one after another, each to reconstruct the output of those below.

Idea. Each layer k is a small autoencoder: a stage of the encoder E_k and the corresponding stage of the decoder
D_k; the last layer is the dense latent. In greedy layer-wise training, each layer learns to reconstruct its input,
the code of the layers below, whose weights are fixed. Then all layers are fine-tuned together:

    h_0 = x,    h_k = E_k(h_{k−1}),    z = h_K
    layer k:        L_k = mean (D_k(E_k(h̃_{k−1})) − h_{k−1})²,    only E_k and D_k are trained
    fine-tuning:    L = Σ m (x − x̂)² / Σ m,    x̂ = D_1(… D_K(z)),    all layers are trained

The loss of the first layer, whose input is the image, is also limited to the mask m. h̃ is the input h or, for a
stacked *denoising* autoencoder, the input with a share of its values set to 0 (masking noise). The evidence is the
residual x − x̂. Deep autoencoders were hard to train in any other way before good initialisation and normalisation
were known. ``greedy: false`` trains the same network end to end, for comparison.

Source: Bengio, Lamblin, Popovici & Larochelle 2007, "Greedy layer-wise training of deep networks"; Vincent et al.
2010, "Stacked denoising autoencoders".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from anomaly.models.base import ModelSettings, StepInfo, crop, pad, target_slice
from anomaly.models.components.conv_autoencoder import (
    LatentDetector,
    LatentNetwork,
    LatentSettings,
    coarse_shape,
    l2,
    stages,
)


class StackedSettings(LatentSettings):
    """Settings of the stacked autoencoder."""

    family: Literal["stacked_ae"] = "stacked_ae"
    greedy: bool = Field(True, description="train layer by layer, then together; false: together from the start")
    fine_tuning: float = Field(
        0.6, gt=0, lt=1, description="share of the steps for fine-tuning; the layers share the others equally"
    )
    masking_noise: float = Field(
        0.0, ge=0, lt=1, description="share of a layer's inputs set to 0 in layer-wise training"
    )


class Layer(nn.Module):
    """An autoencoder of one layer."""

    def __init__(self, encode: nn.Module, decode: nn.Module) -> None:
        super().__init__()
        self.encode = encode
        self.decode = decode

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the reconstruction of the inputs."""
        outputs: Tensor = self.decode(self.encode(inputs))
        return outputs


class Stack(LatentNetwork):
    """Convolutional layers and a dense layer on top."""

    layers: Sequence[Layer]

    def __init__(self, dims: int, in_channels: int, channels: tuple[int, ...], shape: tuple[int, ...], latent: int):
        super().__init__()
        convolutions, coarse = stages(dims, in_channels, channels), coarse_shape(channels, shape)
        encoders, decoders = list(convolutions.encode), list(convolutions.decode)[::-1]
        encoders.append(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(coarse), latent)))
        decoders.append(nn.Sequential(nn.Linear(latent, math.prod(coarse)), nn.Unflatten(1, coarse)))
        self.layers = nn.ModuleList(map(Layer, encoders, decoders))  # type: ignore[assignment]

    def encode_to(self, images: Tensor, k: int) -> Tensor:
        """Return h_k, the code of padded images after the first k layers."""
        for layer in self.layers[:k]:
            images = layer.encode(images)
        return images

    def encode(self, images: Tensor) -> Tensor:
        """Return z ``(B, latent)``."""
        return self.encode_to(images, len(self.layers))

    def decode(self, z: Tensor) -> Tensor:
        """Return images ``(B, 1, *S)``."""
        for layer in reversed(self.layers):
            z = layer.decode(z)
        return z


class StackedAutoencoder(LatentDetector):
    """Residual of an autoencoder whose layers are trained one after another."""

    family = "stacked_ae"
    Settings: ClassVar[type[ModelSettings]] = StackedSettings
    settings: StackedSettings
    network: Stack

    def build(self) -> nn.Module:
        """Return the layers."""
        settings = self.settings
        return Stack(
            self.view.spatial_dims, self.view.channels, settings.channels, self.padded, settings.latent_size
        )

    def greedy_steps(self, steps: int) -> int:
        """Return the number of steps of layer-wise training."""
        return round((1 - self.settings.fine_tuning) * steps) if self.settings.greedy else 0

    def layer_at(self, step: int, steps: int) -> int | None:
        """Return the index of the layer that a step trains, from 0; None in fine-tuning."""
        greedy_steps = self.greedy_steps(steps)
        return step * len(self.network.layers) // greedy_steps if step < greedy_steps else None

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the layer that the step trains, or the whole detector in fine-tuning."""
        k = self.layer_at(step, steps)
        return self if k is None else self.network.layers[k]

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether every layer has been trained."""
        return step >= self.greedy_steps(steps)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the error of the layer that the step trains, or of the whole stack in fine-tuning."""
        del corrupted
        k = self.layer_at(step_info.step, step_info.steps)
        if k is None:
            return {"loss": l2(self.reconstruct(images, mask), target_slice(images), mask)}
        with torch.no_grad():
            inputs = self.network.encode_to(pad(images, self.padded), k)
        outputs = self.network.layers[k](self._masked(inputs, step_info.rng))
        if k == 0:
            return {"loss": l2(crop(outputs, self.image_shape), target_slice(images), mask)}
        return {"loss": F.mse_loss(outputs.float(), inputs.float())}

    def _masked(self, inputs: Tensor, rng: torch.Generator) -> Tensor:
        if self.settings.masking_noise == 0:
            return inputs
        is_kept = torch.rand(inputs.shape, generator=rng, device=inputs.device) >= self.settings.masking_noise
        return inputs * is_kept
