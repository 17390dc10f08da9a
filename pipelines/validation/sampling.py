"""Pictures that a model draws, a few at a time."""

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
from pipelines.validation.labelled_dataset import Labels, told

AT_ONCE = 500  # pictures that are drawn in one go


class Asked(Protocol):
    """What may be asked for."""

    def __len__(self) -> int:
        """Return how many requests there are."""
        ...

    def covariates(self, index: int) -> FloatArray:
        """Return one request ``(F,)``."""
        ...


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests for pictures with labels ``(N, F)``, −1 for what is left open."""

    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def covariates(self, index: int) -> FloatArray:
        """Return one request ``(F,)``; NaN for what is left open."""
        return told(self.labels[index])


def takes_requests(model: Any) -> TypeGuard[Generator]:
    """Return whether a model samples images of given covariates."""
    return isinstance(model, Generator) and bool(getattr(model, "is_conditional", False))


def drawing(model: Any, asked: Asked, rng: torch.Generator) -> Callable[[int], Tensor]:
    """Return what draws n pictures of a Generator; a conditional one is asked for random ones of the requests."""
    if not takes_requests(model):
        return lambda n: model.sample(n, rng)

    def draw(n: int) -> Tensor:
        rows = torch.randint(len(asked), (n,), generator=rng).tolist()
        return model.sample(n, rng, torch.from_numpy(np.stack([asked.covariates(row) for row in rows])))

    return draw


def on_request(model: Generator, asked: Labels, rng: torch.Generator, progress: Progress) -> FloatArray:
    """Return a picture ``(N, H, W)`` for each row of labels ``(N, F)``, −1 for what is left open."""
    rest = list(torch.from_numpy(told(asked)).split(AT_ONCE))
    return in_batches(lambda n: model.sample(n, rng, rest.pop(0)), len(asked), progress, "drawing on request")


def in_batches(draw: Callable[[int], Tensor], n: int, progress: Progress, what: str) -> FloatArray:
    """Return ``n`` pictures ``(n, H, W)``, 0 to 1.

    Raises
    ------
    InputError
        If a value is not finite.
    """
    drawn = []
    for start in range(0, n, AT_ONCE):
        progress(start, n, what)
        with torch.inference_mode():
            drawn.append(pixels_of(draw(min(AT_ONCE, n - start))))
    pictures = np.concatenate(drawn)
    if not np.isfinite(pictures).all():
        raise InputError("found drawn pictures with values that are not finite; look at the training of the model")
    return pictures


def pixels_of(images: Tensor) -> FloatArray:
    """Return the pictures ``(N, H, W)`` of images ``(N, 1, H, W)`` or volumes ``(N, 1, H, W, 1)``."""
    flat = images.detach().float().cpu().numpy()
    return np.asarray(flat.reshape(len(flat), *images.shape[2:4]).clip(0, 1), dtype=np.float32)
