"""Shared parts of the closed-form baselines, which use whole volumes and no training loop. A building block."""

from __future__ import annotations

import torch
from pydantic import field_validator
from torch import Tensor

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.core.volume import Geometry
from anomaly.models.base import ModelSettings


class WholeVolumeSettings(ModelSettings):
    """Settings of a family that compares voxels at the same position of the template."""

    view: ImageView = ImageView(kind="volume")

    @field_validator("view")
    @classmethod
    def _whole_volumes(cls, view: ImageView) -> ImageView:
        if view.kind != "volume":
            raise ValueError(
                "this family compares voxels at the same position of the template; set view.kind to 'volume'"
            )
        return view


def check_cohort(train: VolumeSource, grid: Geometry, family: str, min_scans: int) -> None:
    """Raise TrainingError if there are fewer than ``min_scans`` scans, or if they are on another grid."""
    if len(train) < min_scans:
        raise TrainingError(
            f"found {len(train)} healthy scan(s) to train {family!r} on; expected at least {min_scans}; ingest "
            "more scans, or give the training part a larger share of the split"
        )
    if train.grid.shape != grid.shape:
        raise TrainingError(f"the cohort's grid has shape {train.grid.shape}, the model's {grid.shape}")


def principal_components(scans: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean ``(V,)``, the k leading components ``(k, V)`` and the variance along them ``(k,)``.

    They are computed from the smaller of two matrices with the same eigenvalues Λ. With fewer scans than voxels it
    is the n × n Gram matrix (Turk & Pentland 1991, "Eigenfaces for Recognition"): X Xᵀ = U Λ Uᵀ,
    P = Λ^{-½} Uᵀ X. Otherwise it is Xᵀ X = Pᵀ Λ P.

    Parameters
    ----------
    scans
        X, ``(n, V)``, one scan per row; it is centred in place.
    k
        Number of components.

    Raises
    ------
    TrainingError
        If the rank of the centred scans is less than k.
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
