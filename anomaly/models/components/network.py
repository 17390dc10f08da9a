"""What all trained networks share: seeded construction, training, padding, the residual.

A family file adds its network, its loss, its reconstruction and, where it has more than a residual, its evidence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import AfterValidator
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.files import sha256_of_json
from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import Geometry
from anomaly.models.base import Detector, Evidence, FitReport, FitRun, ModelSettings, PlantedScan
from anomaly.training.protocols import Diagnostics, StepInfo
from anomaly.training.settings import TrainingSettings

FEWEST_SCANS = 2
GROUPS = 8  # of group normalisation


def _divided_into_groups(channels: int) -> int:
    if channels < GROUPS or channels % GROUPS:
        raise ValueError(f"channels must be multiples of {GROUPS}")
    return channels


Width = Annotated[int, AfterValidator(_divided_into_groups)]
"""Number of channels of a layer that is group-normalised."""


class NetworkDetector(Detector):
    """A detector that learns by gradient descent.

    A family implements :meth:`build`, :meth:`loss` and :meth:`reconstruct`; it may override :meth:`prepare` (what
    is learnt before training, e.g. a mean image), :meth:`check` (what cannot be trained), :meth:`corrupt` and
    :meth:`evidence`.

    Attributes
    ----------
    network
        What :meth:`build` returned.
    """

    network: nn.Module

    def __init__(self, settings: ModelSettings, grid: Geometry) -> None:
        super().__init__(settings, grid)
        self._initialise(seed=0)

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network with fresh weights; the caller has seeded torch."""

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return what the loss takes beside images and mask. Nothing, unless a family corrupts them.

        Parameters
        ----------
        images, mask
            As for :meth:`loss`.
        rng
            The only random numbers to use, on the device of the images.
        """
        del images, mask, rng
        return ()

    @abstractmethod
    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return scalars by name; ``"loss"`` is minimised, the others are logged.

        Parameters
        ----------
        images
            ``(B, C, *S)``, already augmented.
        mask
            ``(B, 1, *S)`` bool.
        at
            The step, and its random numbers. Nothing else random may be used.
        corrupted
            What :meth:`corrupt` returned for these images.
        """

    @abstractmethod
    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the pseudo-healthy ``(B, 1, *S)`` for images ``(B, C, *S)``."""

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the signed residual; see the base class."""
        reconstruction = self.reconstruct(images, mask)
        return Evidence({"residual": residual(images, reconstruction, mask)}, apply_mask(reconstruction, mask))

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the part that a step changes: all, unless parts take turns; see ``Learner``."""
        del step, steps
        return self

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether there is something to validate after a step: always, unless parts take turns."""
        del step, steps
        return True

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return how the training goes beside its loss: nothing to say, unless there is a game; see ``Learner``."""
        del batches
        return Diagnostics()

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the two moments of AdamW."""
        return 0.9, 0.999

    @property
    def compiles(self) -> bool:
        """Whether torch can compile the networks; see ``Learner``."""
        return True

    def prepare(self, train: VolumeSource) -> None:
        """Learn what is not learnt by gradient descent. Nothing, unless a family says so."""

    def check(self, train: VolumeSource) -> None:
        """Raise TrainingError where this network cannot learn from these volumes."""

    def fit(self, train: VolumeSource, validation: Sequence[PlantedScan], run: FitRun) -> FitReport:
        """Train on healthy volumes; see the base class.

        Raises
        ------
        TrainingError
            If there are too few scans, or training goes wrong.
        """
        # Imported here, because lightning takes seconds to import and scoring does not need it.
        from anomaly.training.fit import train as run_training

        training = run.training if run.seed is None else run.training.model_copy(update={"seed": run.seed})
        self._check(train)
        self._initialise(training.seed)
        self.prepare(train)
        outcome = run_training(self, train, validation, training, run, self._fingerprint(train, training))
        return FitReport(
            n_scans=len(train),
            steps=outcome.steps,
            seconds=outcome.seconds,
            n_parameters=self.n_parameters(),
            validation=outcome.validation,
            notes=outcome.notes,
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """S, the spatial shape of the images this model sees."""
        return self.view.image_shape(self.grid.shape)

    def _initialise(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = self.build()
        self.eval()

    def _check(self, train: VolumeSource) -> None:
        if len(train) < FEWEST_SCANS:
            raise TrainingError(
                f"found {len(train)} healthy scan(s) to train {self.family!r} on; expected at least "
                f"{FEWEST_SCANS}; ingest more scans, or give the training part a larger share of the split"
            )
        if not train.grid.same_as(self.grid):
            raise TrainingError(
                f"the cohort's grid is {train.grid.shape} at {train.grid.spacing} mm, the model's "
                f"{self.grid.shape} at {self.grid.spacing} mm; create the model on the cohort's grid"
            )
        self.check(train)

    def _fingerprint(self, train: VolumeSource, training: TrainingSettings) -> str:
        settings = self.settings.model_dump(mode="json")
        return sha256_of_json([settings, training.model_dump(mode="json"), len(train), self.grid.affine])


def target_slice(images: Tensor) -> Tensor:
    """Return the channel that is explained, ``(B, 1, *S)``: the middle one of neighbouring slices."""
    middle = images.shape[1] // 2
    return images[:, middle : middle + 1]


def apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values inside the mask, and 0 outside whatever was there."""
    return torch.where(mask, values.float(), 0.0)


def residual(images: Tensor, reconstruction: Tensor, mask: Tensor) -> Tensor:
    """Return image minus reconstruction ``(B, 1, *S)``; negative where a scan is darker than expected."""
    return apply_mask(target_slice(images) - reconstruction, mask)


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of ``(B, 1, *S)`` over the whole batch, a scalar."""
    return (values * weight).sum() / weight.sum().clamp_min(1)


def padded_shape(shape: Sequence[int], multiple: int, least: int = 1) -> tuple[int, ...]:
    """Return the smallest shape that strides divide and that is at least ``least`` along every axis."""
    return tuple(max(math.ceil(n / multiple) * multiple, least) for n in shape)


def refuse_large_latent(size: int, channels: int, shape: Sequence[int]) -> None:
    """Raise TrainingError for a latent that is long enough to copy an image ``(channels, *shape)``."""
    voxels = channels * math.prod(shape)
    if size >= voxels:
        raise TrainingError(
            f"latent_size {size} is not smaller than the image ({voxels} voxels), so the network could copy "
            "lesions; lower model.latent_size"
        )


def pad(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Return images ``(B, C, *S)`` with background added on both sides up to ``shape``."""
    widths: list[int] = []
    for have, want in zip(reversed(images.shape[2:]), reversed(shape), strict=True):
        widths += [(want - have) // 2, want - have - (want - have) // 2]
    return F.pad(images, widths)


def crop(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pad`."""
    for axis, want in enumerate(shape, start=2):
        images = images.narrow(axis, (images.shape[axis] - want) // 2, want)
    return images
