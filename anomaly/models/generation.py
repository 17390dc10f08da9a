"""What generative models can do beyond the detector contract: reconstruct, embed, decode, interpolate and sample.

Each ability is a protocol, so that callers can test a model for it with ``isinstance``.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

CovariatePair = tuple[Tensor, Tensor]
"""Covariates ``(B, D)`` of the subjects of two batches of images, NaN where unknown."""


@runtime_checkable
class Reconstructor(Protocol):
    """A model that returns the pseudo-healthy version of an image."""

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the pseudo-healthy ``(B, 1, *S)`` for images ``(B, C, *S)``."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A model with a short latent code per image, by which similar scans can be found."""

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the latent code ``(B, D)`` of images ``(B, C, *S)``."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A model that decodes latent codes to images."""

    def decode(self, z: Tensor) -> Tensor:
        """Return the images ``(B, C, *S)`` of codes ``(B, D)``."""
        ...


class EncoderDecoder(Embedder, Decoder, Protocol):
    """A model that encodes images and decodes codes."""


@runtime_checkable
class Interpolator(Protocol):
    """A model with its own way to interpolate between images."""

    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: CovariatePair | None = None
    ) -> Tensor:
        """Return images ``(B, C, *S)`` between ``first`` (weight 0) and ``second`` (weight 1), both ``(B, C, *S)``.

        ``covariates`` are those of the subjects of ``first`` and of ``second``; only conditional models use them.
        """
        ...


@runtime_checkable
class Generator(Protocol):
    """A model that samples new normal images."""

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` new images ``(n, C, *S)``.

        ``covariates`` ``(n, D)`` are those of the subjects of the new images, NaN where unknown; only conditional
        models use them.
        """
        ...


def can_interpolate(model: object) -> TypeGuard[EncoderDecoder | Interpolator]:
    """Return whether :func:`interpolate` works with a model."""
    return isinstance(model, Interpolator) or (isinstance(model, Embedder) and isinstance(model, Decoder))


def interpolate(
    model: EncoderDecoder | Interpolator,
    first: Tensor,
    second: Tensor,
    n: int,
    covariates: CovariatePair | None = None,
) -> Tensor:
    """Return ``n`` steps ``(n, B, C, *S)`` from images ``(B, C, *S)`` to other images.

    The latent codes are interpolated linearly, unless the model has its own way to interpolate. ``covariates`` are
    those of the subjects of ``first`` and of ``second``; only conditional models use them.
    """
    weights = torch.linspace(0, 1, n).tolist()
    if isinstance(model, Interpolator):
        return torch.stack([model.interpolate(first, second, weight, covariates) for weight in weights])
    mask = torch.ones_like(first[:, :1], dtype=torch.bool)
    start, end = model.embed(first, mask), model.embed(second, mask)
    return torch.stack([model.decode(torch.lerp(start, end, weight)) for weight in weights])
