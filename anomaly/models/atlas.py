"""Atlas: z-score of every voxel against the healthy mean and SD at its position. A baseline.

    z(v) = (x(v) − μ(v)) / (σ(v) + σ₀)

μ and σ are the mean and standard deviation over the healthy scans whose mask contains the voxel, in template space.
Both are slightly smoothed, because registration leaves errors of a voxel or two. σ₀ is a share of the median σ; it
prevents large z-scores of small differences where healthy scans hardly vary.

Source: the classical voxelwise z-map, e.g. Bowles et al. 2016, "Pseudo-healthy image synthesis for white matter
lesion segmentation" (as a baseline).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from monai.networks.layers import GaussianFilter
from pydantic import Field
from torch import Tensor

from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import Geometry
from anomaly.models.base import ClosedFormDetector, Evidence, ModelSettings, apply_mask, residual, volumes
from anomaly.models.components.closed_form import WholeVolumeSettings, check_cohort

MIN_TRAINING_SCANS = 3  # in all, and that must contain a voxel for it to have an SD of its own


class AtlasSettings(WholeVolumeSettings):
    """Settings of the atlas."""

    family: Literal["atlas"] = "atlas"
    smooth_mm: float = Field(3.0, ge=0, description="SD of the Gaussian filter that smooths mean and SD, mm")
    floor: float = Field(0.5, gt=0, description="σ₀ as a share of the median SD")


class Atlas(ClosedFormDetector):
    """Signed z-score against the voxelwise healthy mean and SD.

    Attributes
    ----------
    mean, sd
        ``(I, J, K)`` healthy mean and standard deviation; ``sd`` includes σ₀ and is 1 outside all masks.
    """

    family = "atlas"
    Settings: ClassVar[type[ModelSettings]] = AtlasSettings
    settings: AtlasSettings
    mean: Tensor
    sd: Tensor

    def __init__(self, settings: ModelSettings, grid: Geometry) -> None:
        super().__init__(settings, grid)
        self.register_buffer("mean", torch.zeros(grid.shape))
        self.register_buffer("sd", torch.ones(grid.shape))

    def fit_closed_form(self, train: VolumeSource) -> None:
        """Learn mean and SD in one pass over the scans (Welford's method); see the base class."""
        check_cohort(train, self.grid, self.family, MIN_TRAINING_SCANS)
        count = torch.zeros(self.grid.shape, dtype=torch.float64)
        mean, squares = torch.zeros_like(count), torch.zeros_like(count)
        for voxels, mask in volumes(train):
            count += mask
            difference = (voxels - mean) * mask
            mean += difference / count.clamp_min(1)
            squares += difference * (voxels - mean)
        self._learn(count, mean, (squares / (count - 1).clamp_min(1)).sqrt())

    def _learn(self, count: Tensor, mean: Tensor, sd: Tensor) -> None:
        covered = count >= MIN_TRAINING_SCANS
        median = sd[covered].median() if covered.any() else torch.tensor(1.0, dtype=torch.float64)
        sigmas = [self.settings.smooth_mm / s for s in self.grid.spacing]
        smoothed = smooth(torch.where(covered, sd, median), count > 0, sigmas)
        self.mean = smooth(mean, count > 0, sigmas).float()
        self.sd = torch.where(count > 0, smoothed + self.settings.floor * median + 1e-6, 1.0).float()

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the signed z-score as ``"residual"``; see the base class."""
        del covariates
        reconstruction = self.reconstruct(images, mask)
        return Evidence(
            {"residual": residual(images, reconstruction, mask) / self.sd}, apply_mask(reconstruction, mask)
        )

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the healthy mean ``(B, 1, I, J, K)``."""
        del mask
        return self.mean.expand(len(images), 1, *self.mean.shape)


def smooth(values: Tensor, inside: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Return values ``(I, J, K)`` smoothed by a Gaussian filter over the voxels inside only; 0 outside.

    Parameters
    ----------
    inside
        ``(I, J, K)`` bool.
    sigmas
        SD of the filter along each axis, voxels.
    """
    if not any(sigmas):
        return values * inside
    gaussian = GaussianFilter(3, list(sigmas)).double()
    stacked = torch.stack([values * inside, inside.double()])[None]
    with torch.no_grad():
        blurred, weight = gaussian(stacked.double())[0]
    return torch.where(inside, blurred / weight.clamp_min(1e-6), 0.0)
