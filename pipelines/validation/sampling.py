"""Images that a generative model samples, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from anomaly.core.errors import InputError
from anomaly.core.progress import Progress
from anomaly.core.volume import FloatArray
from anomaly.models.generation import Generator
from pipelines.validation.labelled_dataset import Labels, as_covariates

BATCH_SIZE = 500  # images sampled in one call


class ConditionSource(Protocol):
    """A source of conditions for a conditional model, such as labelled images."""

    def __len__(self) -> int:
        """Return the number of conditions."""
        ...

    def covariates(self, index: int) -> FloatArray:
        """Return one condition ``(F,)``."""
        ...


@dataclass(frozen=True, eq=False)
class Conditions:
    """Conditions given by labels ``(N, F)``, −1 where unspecified."""

    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def covariates(self, index: int) -> FloatArray:
        """Return one condition ``(F,)``; NaN where unspecified."""
        return as_covariates(self.labels[index])


def is_conditional(model: Any) -> TypeGuard[Generator]:
    """Return whether a model samples images of given covariates."""
    return isinstance(model, Generator) and bool(getattr(model, "is_conditional", False))


def sampler(model: Any, conditions: ConditionSource, rng: torch.Generator) -> Callable[[int], Tensor]:
    """Return a function that samples n images; a conditional model samples under randomly chosen conditions."""
    if not is_conditional(model):
        return lambda n: model.sample(n, rng)

    def sample(n: int) -> Tensor:
        rows = torch.randint(len(conditions), (n,), generator=rng).tolist()
        return model.sample(n, rng, torch.from_numpy(np.stack([conditions.covariates(row) for row in rows])))

    return sample


def sample_conditions(model: Generator, conditions: Labels, rng: torch.Generator, progress: Progress) -> FloatArray:
    """Return one image ``(N, H, W)`` for each row of labels ``(N, F)``, −1 where unspecified."""
    rest = list(torch.from_numpy(as_covariates(conditions)).split(BATCH_SIZE))
    return sample_in_batches(
        lambda n: model.sample(n, rng, rest.pop(0)), len(conditions), progress, "sampling under conditions"
    )


def sample_in_batches(draw: Callable[[int], Tensor], n: int, progress: Progress, what: str) -> FloatArray:
    """Return ``n`` images ``(n, H, W)``, 0 to 1.

    Raises
    ------
    InputError
        If a value is not finite.
    """
    parts = []
    for start in range(0, n, BATCH_SIZE):
        progress(start, n, what)
        with torch.inference_mode():
            parts.append(to_pixels(draw(min(BATCH_SIZE, n - start))))
    images = np.concatenate(parts)
    if not np.isfinite(images).all():
        raise InputError("found sampled images with values that are not finite; check the training of the model")
    return images


def to_pixels(images: Tensor) -> FloatArray:
    """Return images ``(N, 1, H, W)`` or volumes ``(N, 1, H, W, 1)`` as pixels ``(N, H, W)``, clipped to 0 to 1."""
    flat = images.detach().float().cpu().numpy()
    return np.asarray(flat.reshape(len(flat), *images.shape[2:4]).clip(0, 1), dtype=np.float32)
