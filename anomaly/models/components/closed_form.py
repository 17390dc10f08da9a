"""What the closed-form baselines share: they see whole volumes, and learn in one pass without a training loop."""

from __future__ import annotations

import torch
from pydantic import field_validator
from torch import Tensor

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.volume import Geometry
from anomaly.models.base import ModelSettings


class WholeVolumeSettings(ModelSettings):
    """Settings of a family that compares voxels at the same place of the template."""

    view: ImageView = ImageView(kind="volume")

    @field_validator("view")
    @classmethod
    def _whole_volumes(cls, view: ImageView) -> ImageView:
        if view.kind != "volume":
            raise ValueError(
                "this family compares voxels by their place in the template; set view.kind to 'volume'"
            )
        return view


def check_cohort(train: VolumeSource, grid: Geometry, family: str, fewest: int) -> None:
    """Raise TrainingError where there are too few scans, or they lie on another grid."""
    if len(train) < fewest:
        raise TrainingError(
            f"found {len(train)} healthy scan(s) to train {family!r} on; expected at least {fewest}; ingest more "
            "scans, or give the training part a larger share of the split"
        )
    if train.grid.shape != grid.shape:
        raise TrainingError(f"the cohort's grid has shape {train.grid.shape}, the model's {grid.shape}")


def principal_components(scans: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean ``(V,)``, the k leading components ``(k, V)`` and the variance along them ``(k,)``.

    By way of the smaller of two matrices that have the same eigenvalues Λ: of the n × n Gram matrix where there are
    fewer scans than voxels (Turk & Pentland 1991, "Eigenfaces for Recognition"), X Xᵀ = U Λ Uᵀ, P = Λ^{-½} Uᵀ X;
    otherwise of Xᵀ X = Pᵀ Λ P.

    Parameters
    ----------
    scans
        X, ``(n, V)``, one scan per row; centred in place.
    k
        Number of components.

    Raises
    ------
    TrainingError
        If the scans vary along fewer than k directions.
    """
    X = scans
    n, voxels = X.shape
    mean = X.mean(dim=0)
    X -= mean
    eigenvalues, vectors = torch.linalg.eigh((X @ X.T if n <= voxels else X.T @ X).double())
    eigenvalues, leading = eigenvalues.flip(0)[:k].float(), vectors.flip(1)[:, :k].float()
    rank = int((eigenvalues > 1e-6 * eigenvalues[0]).sum()) if eigenvalues[0] > 0 else 0
    if rank < k:
        raise TrainingError(
            f"the healthy scans vary along {rank} directions only, fewer than model.components = {k}; lower it, or "
            "check the cohort for duplicates"
        )
    components = (leading.T @ X) / eigenvalues.sqrt()[:, None] if n <= voxels else leading.T.contiguous()
    return mean, components, eigenvalues / (n - 1)
