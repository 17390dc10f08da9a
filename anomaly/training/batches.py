"""Reproducible training batches.

Batch t depends on the seed and on t only, never on what was read before. A resumed training therefore sees the same
batches as an uninterrupted one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import Array, ImageView, VolumeSource

Location = tuple[slice, slice, slice]
T = TypeVar("T")


class Batch(NamedTuple):
    """Images as they were cut from volumes, or augmented and corrupted for their step.

    Parameters
    ----------
    number
        The number of the batch in the whole training, from 0.
    images
        ``(B, C, *S)`` float32.
    mask
        ``(B, 1, *S)`` bool.
    covariates
        ``(B, D)`` covariates of the subjects, NaN where unknown.
    corrupted
        The further inputs of the loss that the detector made; None before augmentation.
    """

    number: int
    images: Tensor
    mask: Tensor
    covariates: Tensor
    corrupted: tuple[Tensor, ...] | None = None


class ImageBatches:
    """Random images of random scans, cut straight from the (memory-mapped) volumes into batch tensors.

    Parameters
    ----------
    source
        Healthy volumes.
    view
        How images are cut.
    batch_size
        Images per batch.
    seed
        Seed of the random choice; a batch depends on the seed, the rank and its number only.
    rank
        Index of this process among those that train together; each has its own batches.
    pinned
        Allocate batches in page-locked memory, from which a GPU copies asynchronously.
    """

    def __init__(
        self,
        source: VolumeSource,
        view: ImageView,
        batch_size: int,
        seed: int,
        rank: int = 0,
        pinned: bool = False,
    ) -> None:
        if len(source) == 0:
            raise TrainingError("the cohort holds no healthy scan to train on; check its groups and statuses")
        self.source, self.view, self.batch_size = source, view, batch_size
        self.seed, self.rank, self.pinned = seed, rank, pinned
        self._locations: dict[int, list[Location]] = {}

    def batch(self, number: int) -> Batch:
        """Return the batch with this number."""
        rng = np.random.default_rng([self.seed, self.rank, number])
        shape = self.view.image_shape(self.source.grid.shape)
        size, pinned = self.batch_size, self.pinned
        images = torch.empty((size, self.view.channels, *shape), pin_memory=pinned)
        mask = torch.empty((size, 1, *shape), dtype=torch.bool, pin_memory=pinned)
        scans = rng.integers(len(self.source), size=size)
        for row, scan in enumerate(scans):
            self._fill(images[row].numpy(), mask[row].numpy(), int(scan), rng)
        covariates = np.stack([self.source.covariates(int(scan)) for scan in scans]).astype(np.float32, copy=False)
        return Batch(number, images, mask, torch.from_numpy(covariates))

    def _fill(self, image: Array, mask: Array, scan: int, rng: np.random.Generator) -> None:
        voxels, foreground = self.source[scan]
        if scan not in self._locations:
            self._locations[scan] = self.view.locations(foreground)
        locations = self._locations[scan]
        location = locations[int(rng.integers(len(locations)))]
        image[...] = self.view.cut(voxels, location)
        mask[...] = self.view.target_slice(foreground, location)


class StepLoader(Generic[T]):
    """Prepares batches in advance, in threads.

    Parameters
    ----------
    make
        Returns the batch with a given number.
    numbers
        The batches to make, in order.
    threads
        Number of threads that make batches; 0 makes each when it is needed. Threads need no copies and no
        pickling, and numpy and torch release the interpreter lock while they compute.
    """

    def __init__(self, make: Callable[[int], T], numbers: range, threads: int) -> None:
        self.make, self.numbers, self.threads = make, numbers, threads

    def __iter__(self) -> Iterator[T]:
        return map(self.make, self.numbers) if self.threads == 0 else self._make_ahead()

    def _make_ahead(self) -> Iterator[T]:
        with ThreadPoolExecutor(self.threads, thread_name_prefix="batches") as pool:
            waiting: deque[Future[T]] = deque()
            try:
                for number in self.numbers:
                    waiting.append(pool.submit(self.make, number))
                    if len(waiting) > self.threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
