"""Intensity threshold: difference between a voxel's intensity and the healthy median. The simplest baseline.

    r(v) = x(v) − m,    m = the median over healthy scans of the median intensity inside their mask

It ignores anatomy. A model that is no better than this baseline has learnt nothing useful. On FLAIR, where lesions
are bright, few models are better.

Source: Meissen, Kaissis & Rueckert 2021, "Challenging Current Semi-Supervised Anomaly Segmentation Methods for
Brain MRI".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import Geometry
from anomaly.models.base import ClosedFormDetector, Evidence, ModelSettings, apply_mask, residual, volumes
from anomaly.models.components.closed_form import WholeVolumeSettings, check_cohort


class IntensitySettings(WholeVolumeSettings):
    """Settings of the intensity threshold: only the view."""

    family: Literal["intensity"] = "intensity"


class IntensityThreshold(ClosedFormDetector):
    """Signed difference between a voxel's intensity and the healthy median.

    Attributes
    ----------
    median
        ``()`` healthy median intensity.
    """

    family = "intensity"
    Settings: ClassVar[type[ModelSettings]] = IntensitySettings
    median: Tensor

    def __init__(self, settings: ModelSettings, grid: Geometry) -> None:
        super().__init__(settings, grid)
        self.register_buffer("median", torch.zeros(()))

    def fit_closed_form(self, train: VolumeSource) -> None:
        """Learn the median; see the base class."""
        check_cohort(train, self.grid, self.family, min_scans=1)
        medians = [voxels[mask].median() for voxels, mask in volumes(train) if mask.any()]
        self.median = torch.stack(medians).median()

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return image minus median as ``"residual"``; see the base class."""
        del covariates
        reconstruction = self.reconstruct(images, mask)
        return Evidence({"residual": residual(images, reconstruction, mask)}, apply_mask(reconstruction, mask))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the median in every voxel ``(B, 1, I, J, K)``."""
        del mask
        return self.median.expand(len(images), 1, *images.shape[2:])
