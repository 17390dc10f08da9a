"""Restoration: a U-Net that undoes synthetic changes of a known grade, step by step.

Idea. The corruption c(x) of a healthy image x comes in grades t, from nothing to all of it, as the noise of a
diffusion model does ("cold diffusion"). The network g_θ is told the grade and predicts the whole correction
x − c(x); the image gets the share of it by which it was changed:

    x_t = (1 − w(t)) x + w(t) c(x),    w(t) = t,    t ~ U(0, 1]
    x̂₀(x_t, t) = x_t + w(t) g_θ(x_t, t)
    L = Σ ω (x̂₀(x_t, t) − x)² / (2 s² Σ m),    ω = m · (1 + λ · changed),    m the mask

A new scan is taken for the highest grade. In each of n steps the network predicts the healthy image, and what
departs from it is kept to the share that the next lower grade would leave:

    x_1 = the scan,    t_i = 1, 1 − 1/n, …, 1/n
    x_{i+1} = x̂₀ + w(t_{i+1})/w(t_i) · (x_i − x̂₀),    x̂₀ = x̂₀(x_i, t_i)
    r = Σ_i (x_i − x̂₀) / Σ_i w(t_i)

At a high grade the network undoes what is plain, at a low grade what is subtle. x̂₀ − x_i points towards more
healthy images at every grade, as the score of a diffusion model does; what was undone in all steps, r, is the
evidence. A network that restores perfectly gives r = the scan − x in any number of steps.

The second output, ``change_logit``, says how sure the network is that a voxel was changed: log-odds of "too dark"
and "too bright", trained by cross-entropy on the size of the graded change; evidence is the mean over the steps.

Source: Naval Marimont et al. 2023, "DISYRE: Diffusion-Inspired SYnthetic REstoration for Unsupervised Anomaly
Detection"; Bansal et al. 2022, "Cold Diffusion" (the step). The changes are those of the denoising autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.image_views import VolumeSource
from anomaly.models.base import Evidence, ModelSettings, NetworkDetector, StepInfo, apply_mask, target_slice
from anomaly.models.components.change_logit import RARE, change_logit_loss, change_target, signed_change_logit
from anomaly.models.components.context_unet import (
    ContextUNetSettings,
    add_context_channels,
    context_unet,
    healthy_mean_and_sd,
    predict,
)
from anomaly.models.components.corruption import CorruptionSettings, corrupt
from anomaly.models.components.random_fields import foreground_mask

Restorer = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""From images ``(B, C, *S)`` of a grade to healthy images ``(B, C, *S)`` and the change logit ``(B, 1, *S)``."""


class RestorationSettings(ContextUNetSettings):
    """Settings of the restoration network."""

    family: Literal["restoration"] = "restoration"
    steps: int = Field(2, ge=1, le=10, description="n: steps of a restoration, one pass of the network each")
    changed_weight: float = Field(3.0, ge=0, description="λ: extra weight of the loss inside local changes")
    error_sd: float = Field(0.16, gt=0, description="s: the error that counts ½, intensity units")
    change_logit_weight: float = Field(1.0, gt=0, description="weight of the change_logit loss")
    corruption: CorruptionSettings = Field(
        default=CorruptionSettings(), description="synthetic changes that the network learns to undo"
    )


class Restoration(NamedTuple):
    """What came of a restoration.

    Parameters
    ----------
    images
        ``(B, C, *S)`` restored.
    residual
        ``(B, C, *S)`` what was undone, accumulated over the steps, intensity units.
    change_logit
        ``(B, 1, *S)`` mean over the steps.
    """

    images: Tensor
    residual: Tensor
    change_logit: Tensor


def graded(images: Tensor, corrupted: Tensor, grade: Tensor) -> Tensor:
    """Return x_t: the share w(t) = t of the way from images to what corruption makes of them, one t per image."""
    return torch.lerp(images, corrupted, per_image(grade, images))


def restored(images: Tensor, restorer: Restorer, steps: int) -> Restoration:
    """Restore images step by step from the highest grade; see the module's docstring."""
    residual, change_logit = torch.zeros_like(images), torch.zeros_like(target_slice(images))
    grades = [n / steps for n in range(steps, 0, -1)]
    for grade, lower in zip(grades, [*grades[1:], 0.0], strict=True):
        healthy, severe = restorer(images, grade)
        residual = residual + (images - healthy)
        change_logit = change_logit + severe
        images = torch.lerp(healthy, images, lower / grade)
    return Restoration(images, residual / sum(grades), change_logit / steps)


class RestorationNetwork(NetworkDetector):
    """What a U-Net undoes that has learnt to undo graded synthetic changes.

    Attributes
    ----------
    mean, sd
        ``(1, 1, I, J, K)`` of healthy scans, where the settings ask for the atlas.
    """

    family = "restoration"
    Settings: ClassVar[type[ModelSettings]] = RestorationSettings
    settings: RestorationSettings
    mean: Tensor | None
    sd: Tensor | None

    def build(self) -> nn.Module:
        """Return a U-Net that sees images, their context and the grade, and starts by predicting no correction."""
        settings, shape = self.settings, self.grid.shape
        self.register_buffer("mean", torch.zeros(1, 1, *shape) if settings.atlas else None)
        self.register_buffer("sd", torch.ones(1, 1, *shape) if settings.atlas else None)
        return context_unet(settings, settings.shown + 1, self.view.channels + 2)

    def prepare(self, train: VolumeSource) -> None:
        """Learn the voxelwise healthy mean and SD, where the settings ask for the atlas."""
        if self.mean is not None:
            self.mean, self.sd = healthy_mean_and_sd(train)

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return x_t, its grade ``(B,)``, the weight of the loss ``(B, 1, *S)`` and the target ``(B, 2, *S)``.

        The target, 0 to 1, is how much a voxel turned too dark and how much too bright.
        """
        settings = self.settings
        spacing = self.slab_spacing
        corrupted, changed = corrupt(images, mask, spacing, settings.corruption, rng)
        grade = 1 - torch.rand(len(images), generator=rng, device=images.device)
        damaged = graded(images, corrupted, grade)
        weight = torch.add(mask, changed, alpha=settings.changed_weight)  # outside the mask nothing is changed
        return damaged, grade, weight, change_target(target_slice(damaged - images), changed)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the weighted squared error of the healthy images, and the loss of the change logits."""
        del step_info
        damaged, grade, weight, severe = corrupted
        correction, log_odds = self.forward(damaged, grade)
        error = (damaged + correction - images) / self.settings.error_sd
        restoration = 0.5 * (weight * error**2).sum() / (mask.sum().clamp_min(1) * self.view.channels)
        certainty = self.settings.change_logit_weight * change_logit_loss(log_odds, severe, mask)
        return {"loss": restoration + certainty, "restoration": restoration, "change_logit": certainty}

    def restore(self, images: Tensor, mask: Tensor) -> Restoration:
        """Restore images step by step; background stays background."""
        foreground = torch.maximum(foreground_mask(images), mask.float())

        def restorer(images: Tensor, grade: float) -> tuple[Tensor, Tensor]:
            correction, log_odds = self.forward(images, images.new_full((len(images),), grade))
            return images + foreground * correction, signed_change_logit(log_odds)

        return restored(images, restorer, self.settings.steps)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the restored images."""
        return target_slice(self.restore(images, mask).images)

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the accumulated residual and the change logit, both negative where too dark."""
        del covariates
        healthy, residual, change_logit = self.restore(images, mask)
        maps = {
            "residual": apply_mask(target_slice(residual), mask),
            "change_logit": apply_mask(change_logit, mask),
        }
        return Evidence(maps, apply_mask(target_slice(healthy), mask))

    def forward(self, images: Tensor, grade: Tensor) -> tuple[Tensor, Tensor]:
        """Return the correction w·g ``(B, C, *S)`` and the log-odds of too dark and too bright ``(B, 2, *S)``."""
        settings, share = self.settings, per_image(grade, images)
        # Inside the head only: a channel that is the same everywhere is lost in the normalisation of the layers.
        told = share * foreground_mask(target_slice(images))
        shown = torch.cat([add_context_channels(images, settings.mirror, self.mean, self.sd), told], dim=1)
        output = predict(self.network, shown, settings.space_to_depth)
        channels = images.shape[1]
        return share * output[:, :channels], output[:, channels:] - RARE


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Return one number per image ``(B,)``, shaped to broadcast over images."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
