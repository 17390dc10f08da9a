"""Restoration: a U-Net that undoes synthetic changes of a known grade, step by step.

Idea. The corruption c(x) of a healthy image x is applied in part, from not at all (grade 0) to fully (grade 1),
like the noise of a diffusion model ("cold diffusion"). The grade t is an input of the network g_θ. The network
predicts the full correction x − c(x); the image is corrected by the share w(t) of it by which it was changed:

    x_t = (1 − w(t)) x + w(t) c(x),    w(t) = t,    t ~ U(0, 1]
    x̂₀(x_t, t) = x_t + w(t) g_θ(x_t, t)
    L = Σ ω (x̂₀(x_t, t) − x)² / (2 s² Σ m),    ω = m · (1 + λ · changed),    m the mask

A new scan is treated as an image of the highest grade. In each of n steps, the network predicts the healthy image;
the next image keeps as much of the deviation from it as the next lower grade would leave:

    x_1 = the scan,    t_i = 1, 1 − 1/n, …, 1/n
    x_{i+1} = x̂₀ + w(t_{i+1})/w(t_i) · (x_i − x̂₀),    x̂₀ = x̂₀(x_i, t_i)
    r = Σ_i (x_i − x̂₀) / Σ_i w(t_i)

At high grades the network undoes obvious changes, at low grades subtle ones. At every grade, x̂₀ − x_i points
towards healthier images, as the score of a diffusion model does. The evidence is r, the sum of the corrections of
all steps. With a perfect network r is the scan minus x, for any number of steps.

The second output, ``change_logit``, predicts whether a voxel was changed: the logits of "too dark" and "too
bright", trained by cross-entropy on the size of the change at the grade. The evidence map is the mean over steps.

Source: Naval Marimont et al. 2023, "DISYRE: Diffusion-Inspired SYnthetic REstoration for Unsupervised Anomaly
Detection"; Bansal et al. 2022, "Cold Diffusion" (the step). The changes are those of the denoising autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from anomaly.models.base import Evidence, ModelSettings, StepInfo, apply_mask, foreground_mask, target_slice
from anomaly.models.components.context_unet import (
    UNCHANGED_LOGIT,
    ContextUNetDetector,
    ContextUNetSettings,
    change_logit_loss,
    change_target,
    signed_change_logit,
)

RestorationStep = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""Maps images ``(B, C, *S)`` and their grade to healthy images ``(B, C, *S)`` and change logits ``(B, 1, *S)``."""


class RestorationSettings(ContextUNetSettings):
    """Settings of the restoration network."""

    family: Literal["restoration"] = "restoration"
    steps: int = Field(2, ge=1, le=10, description="n: steps of a restoration, one pass of the network each")
    change_logit_weight: float = Field(1.0, gt=0, description="weight of the change_logit loss")


class Restoration(NamedTuple):
    """Result of a restoration.

    Parameters
    ----------
    images
        ``(B, C, *S)`` restored images.
    residual
        ``(B, C, *S)`` r: what was removed in all steps, intensity units.
    change_logit
        ``(B, 1, *S)`` mean over the steps.
    """

    images: Tensor
    residual: Tensor
    change_logit: Tensor


def partly_corrupted(images: Tensor, corrupted: Tensor, grade: Tensor) -> Tensor:
    """Return x_t, the interpolation between images and corrupted images ``(B, C, *S)`` at grades t ``(B,)``."""
    return torch.lerp(images, corrupted, per_image(grade, images))


def restore_in_steps(images: Tensor, step: RestorationStep, n_steps: int) -> Restoration:
    """Restore images ``(B, C, *S)`` step by step from grade 1 to 0; see the module's docstring."""
    residual, change_logit = torch.zeros_like(images), torch.zeros_like(target_slice(images))
    grades = [n / n_steps for n in range(n_steps, 0, -1)]
    for grade, next_grade in zip(grades, [*grades[1:], 0.0], strict=True):
        healthy, logit = step(images, grade)
        residual = residual + (images - healthy)
        change_logit = change_logit + logit
        images = torch.lerp(healthy, images, next_grade / grade)
    return Restoration(images, residual / sum(grades), change_logit / n_steps)


class RestorationNetwork(ContextUNetDetector):
    """Accumulated residual of a U-Net that learns to undo synthetic changes of known grades."""

    family = "restoration"
    Settings: ClassVar[type[ModelSettings]] = RestorationSettings
    settings: RestorationSettings

    def build(self) -> nn.Module:
        """Return a U-Net with the grade as a further input, which predicts no correction before training."""
        return self.build_unet(extra_channels=1, out_channels=self.view.channels + 2)

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return x_t, its grade, the weight of the loss and the targets of the change logits.

        Shapes: ``(B, C, *S)``, ``(B,)``, ``(B, 1, *S)`` and ``(B, 2, *S)``.
        """
        corrupted, changed = self.corrupt_images(images, mask, rng)
        grade = 1 - torch.rand(len(images), generator=rng, device=images.device)
        partly = partly_corrupted(images, corrupted, grade)
        target = change_target(target_slice(partly - images), changed)
        return partly, grade, self.loss_weight(mask, changed), target

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the weighted squared error of the healthy images, and the loss of the change logits."""
        del step_info
        inputs, grade, weight, target = corrupted
        correction, logits = self.forward(inputs, grade)
        error = (inputs + correction - images) / self.settings.error_sd
        restoration = 0.5 * (weight * error**2).sum() / (mask.sum().clamp_min(1) * self.view.channels)
        change_logit = self.settings.change_logit_weight * change_logit_loss(logits, target, mask)
        return {"loss": restoration + change_logit, "restoration": restoration, "change_logit": change_logit}

    def restore(self, images: Tensor, mask: Tensor) -> Restoration:
        """Restore images step by step; background stays 0."""
        foreground = torch.maximum(foreground_mask(images), mask.float())

        def step(images: Tensor, grade: float) -> tuple[Tensor, Tensor]:
            correction, logits = self.forward(images, images.new_full((len(images),), grade))
            return images + foreground * correction, signed_change_logit(logits)

        return restore_in_steps(images, step, self.settings.steps)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the restored images."""
        return target_slice(self.restore(images, mask).images)

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the accumulated residual and the change logit, both negative where the image is too dark."""
        del covariates
        healthy, residual, change_logit = self.restore(images, mask)
        maps = {
            "residual": apply_mask(target_slice(residual), mask),
            "change_logit": apply_mask(change_logit, mask),
        }
        return Evidence(maps, apply_mask(target_slice(healthy), mask))

    def forward(self, images: Tensor, grade: Tensor) -> tuple[Tensor, Tensor]:
        """Return the correction w·g ``(B, C, *S)`` and the logits of too dark and too bright ``(B, 2, *S)``."""
        share, n_channels = per_image(grade, images), images.shape[1]
        # The grade fills the foreground only: normalisation would remove a channel that is constant everywhere.
        output = self.predict(images, share * foreground_mask(target_slice(images)))
        return share * output[:, :n_channels], output[:, n_channels:] - UNCHANGED_LOGIT


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Return one number per image ``(B,)``, reshaped to broadcast over images ``(B, C, *S)``."""
    return values.reshape(-1, *[1] * (images.ndim - 1))
