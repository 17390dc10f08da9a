"""Small healthy "cohorts" in memory, and scans with planted lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from anomaly.cohort.planted_lesions import PlantedScan
from anomaly.core.covariates import UNKNOWN_COVARIATES, covariates
from anomaly.core.image_views import ImageView
from anomaly.core.volume import FloatArray, Geometry, MaskArray
from anomaly.models.base import StepInfo
from anomaly.models.vae import VariationalAutoencoder, VariationalSettings

GRID = Geometry((16, 20, 12), np.diag([8.0, 8.0, 8.0, 1.0]))


@dataclass(frozen=True, eq=False)
class MemoryCohort:
    """Volumes held in memory; obeys VolumeSource."""

    volumes: list[tuple[FloatArray, MaskArray]]
    grid: Geometry = GRID

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> tuple[FloatArray, MaskArray]:
        return self.volumes[index]

    def covariates(self, index: int) -> FloatArray:
        """Return ages from 20 years, one year apart, and both sexes in turn."""
        return covariates(20.0 + index, "FM"[index % 2])


@dataclass(frozen=True, eq=False)
class UnknownSubjects(MemoryCohort):
    """A cohort without known covariates."""

    def covariates(self, index: int) -> FloatArray:
        return UNKNOWN_COVARIATES


@dataclass(frozen=True, eq=False)
class WithKinds(MemoryCohort):
    """A cohort whose only covariate is a kind, one of three."""

    def covariates(self, index: int) -> FloatArray:
        return np.array([index % 3], dtype=np.float32)


def unknown_covariates(n: int) -> Tensor:
    """Return unknown age and sex ``(n, 2)``."""
    return torch.full((n, 2), torch.nan)


def healthy_scan(seed: int, grid: Geometry = GRID) -> tuple[FloatArray, MaskArray]:
    """Return one anatomy with a little individual variation."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / (0.48 * n) for n in grid.shape], indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes)) * rng.uniform(0.95, 1.05)
    mask = radius < 1
    anatomy = 0.7 + 0.2 * np.cos(5 * radius) + 0.1 * np.cos(3 * axes[1]) * rng.uniform(0.8, 1.2)
    voxels = np.where(mask, anatomy * rng.uniform(0.97, 1.03) + rng.normal(0, 0.01, grid.shape), 0)
    return voxels.astype(np.float32), mask


def healthy_cohort(n: int = 10, first: int = 0, grid: Geometry = GRID) -> MemoryCohort:
    return MemoryCohort([healthy_scan(first + seed, grid) for seed in range(n)], grid)


def planted_scan(seed: int = 100, loss: float = 0.6, grid: Geometry = GRID) -> PlantedScan:
    """Return a scan with a dark ball near its centre."""
    voxels, mask = healthy_scan(seed, grid)
    target_slice = np.array(grid.shape).reshape(3, 1, 1, 1) // 2 + np.array([2, 1, 0]).reshape(3, 1, 1, 1)
    lesion = (np.sqrt(((np.indices(grid.shape) - target_slice) ** 2).sum(0)) < 2.6) & mask
    planted = np.where(lesion, voxels * (1 - loss), voxels).astype(np.float32)
    return PlantedScan(planted, mask, lesion, "dark", loss)


def images_of(voxels: FloatArray, mask: MaskArray, view: ImageView) -> tuple[Tensor, Tensor]:
    """Return all images ``(B, C, *S)`` of a scan, and their masks ``(B, 1, *S)``."""
    places = view.locations(mask)
    images = np.stack([view.cut(voxels, place) for place in places])
    masks = np.stack([view.target_slice(mask, place) for place in places])
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(np.ascontiguousarray(masks))


def binary_scan(seed: int) -> tuple[FloatArray, MaskArray]:
    """Return a healthy scan of intensities 0 and 1."""
    voxels, mask = healthy_scan(seed)
    return (voxels > 0.7).astype(np.float32), mask


def step_info(step: int, steps: int = 100, covariates: Tensor | None = None, seed: int = 0) -> StepInfo:
    """Return what a loss is given in one training step."""
    return StepInfo(step, steps, torch.Generator().manual_seed(seed), covariates)


def small_vae(**changes: object) -> VariationalAutoencoder:
    """Return a small variational autoencoder that is not trained."""
    settings = VariationalSettings.parse({"channels": (8, 16), "latent_size": 6, **changes}, "model")
    return VariationalAutoencoder(settings, GRID)


def randomise_zero_parameters(network: nn.Module) -> None:
    """Give random weights to the layers that are initialised to 0, so that every layer affects the output."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
