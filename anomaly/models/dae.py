"""Denoising autoencoder: a U-Net that undoes synthetic changes.

Idea. A healthy image x is corrupted to x̃ = c(x); the network learns to give back x. It thereby learns what
belongs at a place given everything around it. In a new scan it undoes what does not look healthy; what it undid
is the evidence. With the network's correction g_θ:

    x̂ = x + g_θ(x),    r = x − x̂
    L = Σ w (x̃ + g_θ(x̃) − x)² / (2 s² Σ m),    w = m · (1 + λ · changed),    m the mask

The skip connections of the U-Net keep fine anatomy; the corruption must therefore be local or coarse, or the
network learns to pass lesions through. Beside the image, the network sees what a radiologist compares with: the
mirror image (the other hemisphere) and the healthy mean at the place.

Two simple models can speak beside the network, because their errors differ from its own: ``mean_deviation``, the
image minus the healthy mean, and ``pca``, the residual outside the subspace of healthy scans. Scoring standardises
and adds them up as its settings say. An optional second output, ``change_logit``, says how sure the network is that
a voxel was changed: log-odds of "too dark" and "too bright", trained by cross-entropy.

Source: Kascenas, Pugeault & O'Neil 2022, "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain
MRI" (coarse noise); Naval Marimont et al. 2023, "DISYRE" (many kinds of synthetic change); Tan et al. 2022,
"Detecting Outliers with Foreign Patch Interpolation" (predicted severity).
As options of the corruption: Wyatt et al. 2022, "AnoDDPM" (simplex noise); He et al. 2022, "Masked autoencoders
are scalable vision learners" (lost cubes).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import (
    Evidence,
    ModelSettings,
    NetworkDetector,
    StepInfo,
    apply_mask,
    residual,
    target_slice,
)
from anomaly.models.components.change_logit import RARE, change_logit_loss, change_target, signed_change_logit
from anomaly.models.components.closed_form import principal_components
from anomaly.models.components.context_unet import (
    ContextUNetSettings,
    add_context_channels,
    context_unet,
    healthy_mean_and_sd,
    predict,
)
from anomaly.models.components.corruption import CorruptionSettings, corrupt


class DenoisingSettings(ContextUNetSettings):
    """Settings of the denoising autoencoder."""

    family: Literal["dae"] = "dae"
    changed_weight: float = Field(3.0, ge=0, description="λ: extra weight of the loss inside local changes")
    error_sd: float = Field(0.16, gt=0, description="s: the error that counts ½, intensity units")
    change_logit_weight: float = Field(1.0, ge=0, description="weight of its loss; 0 = no map change_logit")
    components: int = Field(0, ge=0, description="principal components of the map pca; 0 = no such map")
    corruption: CorruptionSettings = Field(
        default=CorruptionSettings(), description="synthetic changes that the network learns to undo"
    )

    @model_validator(mode="after")
    def _components_need_the_atlas(self) -> DenoisingSettings:
        if self.components and not self.atlas:
            raise ValueError("components need atlas, whose mean they are centred on")
        return self


class DenoisingAutoencoder(NetworkDetector):
    """Residual of a U-Net that undoes synthetic changes.

    Attributes
    ----------
    mean, sd
        ``(1, 1, I, J, K)`` of healthy scans, where the settings ask for the atlas.
    components
        ``(k, I·J·K)`` orthonormal principal components of healthy scans, where the settings ask for them.
    """

    family = "dae"
    Settings: ClassVar[type[ModelSettings]] = DenoisingSettings
    settings: DenoisingSettings
    mean: Tensor | None
    sd: Tensor | None
    components: Tensor | None

    def build(self) -> nn.Module:
        """Return a U-Net on the (folded) input channels that starts by predicting no correction."""
        settings = self.settings
        shape, k = self.grid.shape, settings.components
        self.register_buffer("mean", torch.zeros(1, 1, *shape) if settings.atlas else None)
        self.register_buffer("sd", torch.ones(1, 1, *shape) if settings.atlas else None)
        self.register_buffer("components", torch.zeros(k, math.prod(shape)) if k else None)
        return context_unet(settings, settings.shown, 3 if settings.change_logit_weight else 1)

    def check(self, train: VolumeSource) -> None:
        """Refuse more principal components than half of the scans can give."""
        fewest = 2 * self.settings.components + 1
        if self.settings.components and len(train) < fewest:
            raise TrainingError(
                f"found {len(train)} healthy scans; model.components = {self.settings.components} needs at least "
                f"{fewest}, because they are learnt from half of the scans; lower it, or ingest more scans"
            )

    def prepare(self, train: VolumeSource) -> None:
        """Learn the voxelwise healthy mean and SD and the principal components, where the settings ask for them.

        The components come from every second scan only, so that the healthy spread of their residual, which
        scoring learns from all of them, is not just that of scans they were fitted to.
        """
        if self.mean is None:
            return
        self.mean, self.sd = healthy_mean_and_sd(train)
        if self.components is not None:
            half = torch.stack([torch.from_numpy(train[n][0].copy()).flatten() for n in range(0, len(train), 2)])
            self.components = principal_components(half, self.settings.components)[1]

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return corrupted images ``(B, C, *S)``, what was added, its weight (both ``(B, 1, *S)``) and target.

        The target ``(B, 2, *S)``, 0 to 1, is how much a voxel turned too dark and how much too bright. It is
        absent if ``change_logit_weight`` is 0.
        """
        settings = self.settings
        corrupted, changed = corrupt(images, mask, self.slab_spacing, settings.corruption, rng)
        moved = target_slice(corrupted) - target_slice(images)
        weight = torch.add(mask, changed, alpha=settings.changed_weight)  # outside the mask nothing is changed
        if not settings.change_logit_weight:
            return corrupted, moved, weight
        return corrupted, moved, weight, change_target(moved, changed)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the weighted squared error of undoing the corruption, and the loss of the change logits."""
        del images, step_info
        damaged, moved, weight, *severe = corrupted
        output = self.forward(damaged)
        error = (output[:, :1] + moved) / self.settings.error_sd
        losses = {"restoration": 0.5 * (weight * error**2).sum() / mask.sum().clamp_min(1)}
        for target in severe:  # none or one, as the settings ask
            losses["change_logit"] = self.settings.change_logit_weight * change_logit_loss(
                output[:, 1:], target, mask
            )
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return x + g(x)."""
        del mask
        return target_slice(images) + self.forward(images)[:, :1]

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the signed residual and, as the settings say, the other maps; see the module's docstring."""
        del covariates
        output = self.forward(images)
        reconstruction = target_slice(images) + output[:, :1]
        maps = {"residual": residual(images, reconstruction, mask)}
        if self.mean is not None:
            maps["mean_deviation"] = residual(images, self.mean, mask)
            if self.components is not None:
                flat = maps["mean_deviation"].flatten(1)
                inside = (flat @ self.components.T) @ self.components
                maps["pca"] = apply_mask(maps["mean_deviation"] - inside.reshape_as(images), mask)
        if self.settings.change_logit_weight:
            maps["change_logit"] = apply_mask(signed_change_logit(output[:, 1:]), mask)
        return Evidence(maps, apply_mask(reconstruction, mask))

    def forward(self, images: Tensor) -> Tensor:
        """Return the correction g and the two log-odds of a change ``(B, 1 or 3, *S)``."""
        settings = self.settings
        shown = add_context_channels(images, settings.mirror, self.mean, self.sd)
        output = predict(self.network, shown, settings.space_to_depth)
        return torch.cat([output[:, :1], output[:, 1:] - RARE], dim=1)
