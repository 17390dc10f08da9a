"""Settings of a training run. Imports no deep-learning library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from anomaly.core.config import Settings


class AugmentationSettings(Settings):
    """Augmentation: how much a healthy scan is varied, as another scanner or registration would. 0 = off."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right mirror image")
    deform: float = Field(
        0.5, ge=0, le=1, description="probability that a batch is deformed by the next five settings"
    )
    translate: float = Field(0.0, ge=0, description="largest shift, voxels")
    rotate: float = Field(0.0, ge=0, description="largest rotation, degrees")
    scale: float = Field(0.0, ge=0, lt=0.5, description="largest change of size, as a share")
    elastic: float = Field(
        0.0, ge=0, le=1, description="largest SD of a smooth displacement, as a share of its node spacing"
    )
    elastic_nodes: tuple[int, int] = Field(
        (4, 12),
        description="range of the number of nodes along each axis: few warp large structures, many warp small ones",
    )
    gamma: float = Field(0.2, ge=0, description="largest |log exponent| of the contrast curve")
    brightness: float = Field(0.04, ge=0, description="largest |log factor| of all intensities")
    bias_field: float = Field(0.1, ge=0, description="largest |log factor| of a smooth intensity drift")
    noise: float = Field(0.03, ge=0, description="largest SD of added Gaussian noise, intensity units")
    blur: float = Field(0.5, ge=0, le=1, description="largest diffusion between neighbouring voxels, 1 = full step")

    @model_validator(mode="after")
    def _nodes_are_a_range(self) -> AugmentationSettings:
        fewest, most = self.elastic_nodes
        if not 2 <= fewest <= most:
            raise ValueError(f"elastic_nodes: found [{fewest}, {most}]; expected 2 or more, the smaller first")
        return self


class TrainingSettings(Settings):
    """How a network is trained."""

    steps: int = Field(4000, ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="images per batch")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are averaged for one optimiser step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    warmup: int = Field(50, ge=0, description="steps of linear warm-up; cosine decay follows")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay of AdamW")
    gradient_clip: float = Field(1.0, gt=0, description="largest L2 norm of the gradient")
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="decay of the moving average of the weights; 0 = use the last weights"
    )
    precision: Literal["auto", "native", "bf16", "32"] = Field(
        "auto",
        description="auto: bfloat16 on a GPU; native: also on a CPU with bfloat16 instructions; otherwise float32",
    )
    validate_every: int = Field(
        250, ge=1, description="steps between validations on synthetic lesions; each saves a checkpoint"
    )
    patience: int = Field(0, ge=0, description="validations without improvement before stopping; 0 = never stop")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    num_workers: int = Field(
        0, ge=0, description="threads that prepare batches in advance, for large networks; 0 = none"
    )
    augmentation: AugmentationSettings = Field(
        default=AugmentationSettings(), description="how healthy scans are varied; 0 switches one variation off"
    )
