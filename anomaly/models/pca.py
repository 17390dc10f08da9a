"""Principal components: the residual of a scan outside the subspace of healthy scans. A baseline.

With healthy scans as rows of X (n × V), centred, and the Gram matrix X Xᵀ = U Λ Uᵀ (n × n, small):

    P = Λ^{-½} Uᵀ X             the k leading components, orthonormal rows of length V
    x̂ = μ + Pᵀ P (x − μ),       r = x − x̂
    T² = Σ_i (n − 1) · (P (x − μ))_i² / Λ_i      Hotelling: squared Mahalanobis distance inside the subspace

Source: Turk & Pentland 1991, "Eigenfaces for Recognition" (the Gram matrix, for V ≫ n); Hotelling 1931.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from anomaly.core.image_views import VolumeSource
from anomaly.core.volume import Geometry
from anomaly.models.base import ClosedFormDetector, Evidence, ModelSettings, apply_mask, residual, volumes
from anomaly.models.components.closed_form import WholeVolumeSettings, check_cohort, principal_components


class PCASettings(WholeVolumeSettings):
    """Settings of the principal components."""

    family: Literal["pca"] = "pca"
    components: int = Field(60, ge=1, description="k: number of components; needs more than k scans")


class PrincipalComponents(ClosedFormDetector):
    """Residual of the projection on the principal components of healthy scans.

    Attributes
    ----------
    mean
        ``(V,)`` healthy mean, V = I·J·K.
    components
        ``(k, V)`` orthonormal rows.
    variance
        ``(k,)`` variance of healthy scans along each component.
    """

    family = "pca"
    Settings: ClassVar[type[ModelSettings]] = PCASettings
    settings: PCASettings
    mean: Tensor
    components: Tensor
    variance: Tensor

    def __init__(self, settings: ModelSettings, grid: Geometry) -> None:
        super().__init__(settings, grid)
        voxels, k = math.prod(grid.shape), self.settings.components
        self.register_buffer("mean", torch.zeros(voxels))
        self.register_buffer("components", torch.zeros(k, voxels))
        self.register_buffer("variance", torch.ones(k))

    def fit_closed_form(self, train: VolumeSource) -> None:
        """Compute mean and components from the Gram matrix, with all scans in memory; see the base class."""
        k = self.settings.components
        check_cohort(train, self.grid, self.family, k + 1)
        X = torch.stack([torch.where(mask, voxels, 0.0).flatten() for voxels, mask in volumes(train)])
        self.mean, self.components, self.variance = principal_components(X, k)

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the residual, and Hotelling's T² as the term ``"hotelling"``; see the base class."""
        del covariates
        codes = self._codes(images, mask)
        reconstruction = self._decode(codes)
        terms = {"hotelling": (codes**2 / self.variance).sum(dim=1)}
        return Evidence(
            {"residual": residual(images, reconstruction, mask)}, apply_mask(reconstruction, mask), terms
        )

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return μ + PᵀP(x − μ) ``(B, 1, I, J, K)``."""
        return self._decode(self._codes(images, mask))

    def _codes(self, images: Tensor, mask: Tensor) -> Tensor:
        return (apply_mask(images, mask).flatten(1) - self.mean) @ self.components.T

    def _decode(self, codes: Tensor) -> Tensor:
        return (self.mean + codes @ self.components).reshape(-1, 1, *self.grid.shape)
