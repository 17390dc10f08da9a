"""Denoising autoencoder: a U-Net that learns to undo synthetic changes.

Idea. A healthy image x is corrupted to x̃ = c(x), and the network learns to recover x. It thereby learns which
tissue is normal at a position, given all of the image around it. In a new scan, the network corrects what does not
look healthy; the correction is the evidence. With the network's correction g_θ:

    x̂ = x + g_θ(x),    r = x − x̂
    L = Σ w (x̃ + g_θ(x̃) − x)² / (2 s² Σ m),    w = m · (1 + λ · changed),    m the mask

The skip connections of the U-Net preserve fine anatomy. The corruption must therefore be local or coarse; otherwise
the network learns to copy lesions. Besides the image, the network gets its mirror image (the other hemisphere), the
healthy mean of each voxel and the z-score against it.

Two simple models can add evidence maps, because their errors differ from those of the network: ``mean_deviation``,
the image minus the healthy mean, and ``pca``, the residual after projection on the principal components of healthy
scans. Scoring standardises the maps and adds them with the weights in its settings. An optional second output,
``change_logit``, predicts whether a voxel was changed: the logits of "too dark" and "too bright", trained by
cross-entropy.

Source: Kascenas, Pugeault & O'Neil 2022, "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain
MRI" (coarse noise); Naval Marimont et al. 2023, "DISYRE" (several kinds of synthetic change); Tan et al. 2022,
"Detecting Outliers with Foreign Patch Interpolation" (a predicted degree of change).
Options of the corruption: Wyatt et al. 2022, "AnoDDPM" (simplex noise); He et al. 2022, "Masked autoencoders
are scalable vision learners" (masked cubes).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import Evidence, ModelSettings, StepInfo, apply_mask, residual, target_slice
from anomaly.models.components.context_unet import (
    UNCHANGED_LOGIT,
    ContextUNetDetector,
    ContextUNetSettings,
    change_logit_loss,
    change_target,
    healthy_components,
    signed_change_logit,
)


class DenoisingSettings(ContextUNetSettings):
    """Settings of the denoising autoencoder."""

    family: Literal["dae"] = "dae"
    change_logit_weight: float = Field(
        1.0, ge=0, description="weight of the change_logit loss; 0 = no map change_logit"
    )
    components: int = Field(0, ge=0, description="number of principal components of the map pca; 0 = no map pca")

    @model_validator(mode="after")
    def _components_need_the_atlas(self) -> DenoisingSettings:
        if self.components and not self.atlas:
            raise ValueError("components need atlas, because they are centred on its mean")
        return self


class DenoisingAutoencoder(ContextUNetDetector):
    """Residual of a U-Net that learns to undo synthetic changes.

    Attributes
    ----------
    components
        ``(k, I·J·K)`` orthonormal principal components of healthy scans; None if ``settings.components`` is 0.
    """

    family = "dae"
    Settings: ClassVar[type[ModelSettings]] = DenoisingSettings
    settings: DenoisingSettings
    components: Tensor | None

    def build(self) -> nn.Module:
        """Return a U-Net that predicts no correction before training."""
        network = self.build_unet(extra_channels=0, out_channels=3 if self.settings.change_logit_weight else 1)
        k = self.settings.components
        self.register_buffer("components", torch.zeros(k, math.prod(self.grid.shape)) if k else None)
        return network

    def check(self, train: VolumeSource) -> None:
        """Refuse more principal components than half of the scans can give."""
        needed = 2 * self.settings.components + 1
        if self.settings.components and len(train) < needed:
            raise TrainingError(
                f"found {len(train)} healthy scans; model.components = {self.settings.components} needs at least "
                f"{needed}, because the components are computed from half of the scans; lower it, or ingest more "
                "scans"
            )

    def prepare(self, train: VolumeSource) -> None:
        """Compute the voxelwise healthy mean and SD and the principal components, as the settings say."""
        super().prepare(train)
        if self.components is not None:
            self.components = healthy_components(train, self.settings.components)

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return corrupted images, the difference to the originals, the weight of the loss and the targets.

        Shapes: ``(B, C, *S)``, ``(B, 1, *S)``, ``(B, 1, *S)`` and ``(B, 2, *S)``. The targets of the change logits
        are left out if ``change_logit_weight`` is 0.
        """
        corrupted, changed = self.corrupt_images(images, mask, rng)
        difference = target_slice(corrupted) - target_slice(images)
        weight = self.loss_weight(mask, changed)
        if not self.settings.change_logit_weight:
            return corrupted, difference, weight
        return corrupted, difference, weight, change_target(difference, changed)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the weighted squared error of undoing the corruption, and the loss of the change logits."""
        del images, step_info
        inputs, difference, weight, *targets = corrupted
        output = self.forward(inputs)
        error = (output[:, :1] + difference) / self.settings.error_sd
        losses = {"restoration": 0.5 * (weight * error**2).sum() / mask.sum().clamp_min(1)}
        for target in targets:  # one, or none if change_logit_weight is 0
            losses["change_logit"] = self.settings.change_logit_weight * change_logit_loss(
                output[:, 1:], target, mask
            )
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return x + g(x)."""
        del mask
        return target_slice(images) + self.forward(images)[:, :1]

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the signed residual and the other maps that the settings ask for; see the module's docstring."""
        del covariates
        output = self.forward(images)
        reconstruction = target_slice(images) + output[:, :1]
        maps = {"residual": residual(images, reconstruction, mask)}
        if self.mean is not None:
            maps["mean_deviation"] = residual(images, self.mean, mask)
            if self.components is not None:
                deviation = maps["mean_deviation"].flatten(1)
                projection = (deviation @ self.components.T) @ self.components
                maps["pca"] = apply_mask(maps["mean_deviation"] - projection.reshape_as(images), mask)
        if self.settings.change_logit_weight:
            maps["change_logit"] = apply_mask(signed_change_logit(output[:, 1:]), mask)
        return Evidence(maps, apply_mask(reconstruction, mask))

    def forward(self, images: Tensor) -> Tensor:
        """Return the correction g and, if they are learnt, the two change logits: ``(B, 1 or 3, *S)``."""
        output = self.predict(images)
        return torch.cat([output[:, :1], output[:, 1:] - UNCHANGED_LOGIT], dim=1)
