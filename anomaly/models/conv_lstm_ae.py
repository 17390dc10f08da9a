"""Recurrent autoencoder: a bidirectional LSTM over neighbouring slices, from which the middle slice is decoded.

Idea. Anatomy continues from slice to slice. An encoder E, shared by all slices, computes features of the slice
x_0 and of its n neighbours on each side. Two recurrent networks process them, one from each end to the middle, so
that their last states depend on all slices in order. A short latent vector z is computed from these states. The
decoder D reconstructs the middle slice from z alone:

    f_t = E(x_t),    t = −n … n
    h⁺ = RNN⁺(f_−n, …, f_0),    h⁻ = RNN⁻(f_n, …, f_0)              separate weights for each direction
    z = W [h⁺, h⁻] + b,    x̂_0 = D(z),    L = Σ m (x_0 − x̂_0)² / Σ m,    r = x_0 − x̂_0

There are two kinds of recurrent cell. The state of ``convlstm`` consists of feature maps, and its gates are
convolutions of the features f and the hidden state h, so that positions are preserved. Without the peephole
connections of the paper:

    i, f, g, o = σ, σ, tanh, σ of W * [f_t, h_{t−1}] + b
    c_t = f ∘ c_{t−1} + i ∘ g,    h_t = o ∘ tanh(c_t)

The state of ``lstm`` is a vector: a linear layer reduces the features of a slice to a code, and the gates are
linear.

Source: Shi et al. 2015, "Convolutional LSTM network: a machine learning approach for precipitation nowcasting";
Hochreiter & Schmidhuber 1997, "Long short-term memory"; for autoencoders that detect anomalies in a sequence, Chong
& Tay 2017, "Abnormal event detection in videos using spatiotemporal autoencoder".
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.models.base import ModelSettings, StepInfo, refuse_large_latent, target_slice
from anomaly.models.components.conv_autoencoder import (
    LatentDetector,
    LatentNetwork,
    LatentSettings,
    coarse_shape,
    l2,
    stages,
)

State = tuple[Tensor, Tensor]


class RecurrentSettings(LatentSettings):
    """Settings of the recurrent autoencoder."""

    family: Literal["conv_lstm_ae"] = "conv_lstm_ae"
    view: ImageView = ImageView(kind="slice", axis=2, neighbours=1)
    cell: Literal["convlstm", "lstm"] = Field("convlstm", description="recurrent cell that runs along the slices")
    hidden_size: int = Field(
        32, ge=1, description="size of the hidden state in each direction: channels (convlstm) or numbers (lstm)"
    )

    @field_validator("view")
    @classmethod
    def _has_neighbouring_slices(cls, view: ImageView) -> ImageView:
        if view.kind != "slice" or view.neighbours < 1:
            raise ValueError(
                f"this family needs neighbouring slices; found view kind {view.kind!r} with neighbours "
                f"{view.neighbours}; set view.kind to 'slice' and view.neighbours to 1 or more"
            )
        return view


class ConvLSTMCell(nn.Module):
    """One step of a convolutional LSTM on features ``(B, C, H, W)``, with states ``(B, M, H, W)``."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gates = nn.Conv2d(channels + hidden_size, 4 * hidden_size, kernel_size=3, padding=1)

    def forward(self, features: Tensor, state: State) -> State:
        """Return h_t and c_t."""
        h, c = state
        i, f, g, o = self.gates(torch.cat([features, h], dim=1)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def start(self, features: Tensor) -> State:
        """Return the initial state, which is 0."""
        zeros = features.new_zeros(len(features), self.hidden_size, *features.shape[2:])
        return zeros, zeros


class BidirectionalConvLSTM(nn.Module):
    """Two convolutional LSTMs, one from each end of the slices to the middle."""

    def __init__(self, shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(ConvLSTMCell(shape[0], hidden_size) for _ in range(2))
        self.size = 2 * hidden_size * math.prod(shape[1:])

    def forward(self, features: Tensor) -> Tensor:
        """Return the hidden states of both directions at the middle slice ``(B, size)``, of ``(B, T, C, H, W)``."""
        middle = features.shape[1] // 2
        sequences = features[:, : middle + 1], features[:, middle:].flip(1)
        return torch.cat([self._last_state(*pair) for pair in zip(self.cells, sequences, strict=True)], dim=1)

    def _last_state(self, cell: nn.Module, sequence: Tensor) -> Tensor:
        state: State = cell.start(sequence[:, 0])  # type: ignore[operator]
        for features in sequence.unbind(1):
            state = cell(features, state)
        return state[0].flatten(1)


class BidirectionalLSTM(nn.Module):
    """A bidirectional LSTM over the codes of the slices."""

    def __init__(self, shape: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        self.to_code = nn.Linear(math.prod(shape), hidden_size)
        self.cells = nn.LSTM(hidden_size, hidden_size, batch_first=True, bidirectional=True)
        self.size = 2 * hidden_size

    def forward(self, features: Tensor) -> Tensor:
        """Return the hidden states of both directions at the middle slice ``(B, size)``, of ``(B, T, C, H, W)``."""
        states: Tensor = self.cells(self.to_code(features.flatten(2)))[0]
        return states[:, states.shape[1] // 2]


class RecurrentNetwork(LatentNetwork):
    """Encoder of slices, bidirectional recurrent network, dense latent, decoder of the middle slice."""

    def __init__(self, channels: tuple[int, ...], shape: tuple[int, ...], cell: str, hidden_size: int, latent: int):
        super().__init__()
        self.convolutions = stages(2, 1, channels)
        self.coarse = coarse_shape(channels, shape)
        self.recurrent = (
            BidirectionalConvLSTM(self.coarse, hidden_size)
            if cell == "convlstm"
            else BidirectionalLSTM(self.coarse, hidden_size)
        )
        self.to_latent = nn.Linear(self.recurrent.size, latent)
        self.from_latent = nn.Linear(latent, math.prod(self.coarse))

    def encode(self, images: Tensor) -> Tensor:
        """Return z ``(B, latent)`` of neighbouring slices ``(B, T, H, W)``."""
        features = self.convolutions.encode(images.flatten(0, 1)[:, None])
        z: Tensor = self.to_latent(self.recurrent(features.unflatten(0, images.shape[:2])))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return the middle slice ``(B, 1, H, W)``."""
        images: Tensor = self.convolutions.decode(self.from_latent(z).reshape(-1, *self.coarse))
        return images


class RecurrentAutoencoder(LatentDetector):
    """Residual of the middle slice, reconstructed from a sequence of neighbouring slices."""

    family = "conv_lstm_ae"
    Settings: ClassVar[type[ModelSettings]] = RecurrentSettings
    settings: RecurrentSettings

    def build(self) -> nn.Module:
        """Return encoder, recurrent network and decoder."""
        settings = self.settings
        return RecurrentNetwork(
            settings.channels, self.padded, settings.cell, settings.hidden_size, settings.latent_size
        )

    def check(self, train: VolumeSource) -> None:
        """Refuse a latent that could copy the middle slice."""
        del train
        refuse_large_latent(self.settings.latent_size, 1, self.image_shape)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error inside the mask of the middle slice."""
        del step_info, corrupted
        return {"loss": l2(self.reconstruct(images, mask), target_slice(images), mask)}
