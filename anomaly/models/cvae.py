"""Conditional variational autoencoder: what is normal for this age and sex.

Idea. Healthy brains of old subjects have wider ventricles than those of young ones. A model conditioned on age and
sex need not encode them. It does not flag normal ageing as an anomaly, and flags an old-looking brain in a young
subject. Encoder and decoder get the condition c: the standardised age, the sex, and whether each is known, or the
other ``covariates`` of the volumes. The prior of the code does not depend on c:

    log p(x|c) ≥ ELBO = E_q[log p(x|z, c)] − KL(q(z|x, c) ‖ p(z)),    p(z) = N(0, 1)
    μ, log σ² = A [h(x); c] + a,    x̂ = D(B [z; c] + b)              c is an input of the dense layers
    L = (−log p(x|z, c) + β·KL) / N                                         β rises from 0 over the warm-up

In training, covariates are dropped at random, so that the model can deal with unknown ones.

Evidence: as for the variational autoencoder, given c: residual, KL, negative ELBO, and optionally its other maps.

Source: Sohn, Lee & Yan 2015, "Learning Structured Output Representation using Deep Conditional Generative Models";
Kingma & Welling 2014, "Auto-Encoding Variational Bayes".
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from monai.networks.nets import VarAutoEncoder
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.covariates import AGE_AND_SEX, Covariates
from anomaly.models.base import ModelSettings, StepInfo, crop, pad
from anomaly.models.components.variational_detector import (
    CodeSettings,
    VariationalDetector,
)


class ConditionalSettings(CodeSettings):
    """Settings of the conditional variational autoencoder."""

    family: Literal["cvae"] = "cvae"
    covariates: Covariates = Field(
        AGE_AND_SEX, description="the covariates of the condition; values 0: a number, n: one of 0 to n − 1"
    )
    condition_dropout: float = Field(
        0.2, ge=0, le=1, description="probability in training that a covariate is replaced by unknown"
    )


class ConditionalVarAutoEncoder(VarAutoEncoder):
    """MONAI's VarAutoEncoder with c concatenated to the features and to the code."""

    mu: nn.Linear
    logvar: nn.Linear
    decodeL: nn.Linear  # noqa: N815 - MONAI's name

    def __init__(self, condition_size: int, **architecture: Any) -> None:
        super().__init__(**architecture)
        latent, features = self.latent_size, self.decodeL.out_features
        self.mu = nn.Linear(features + condition_size, latent)
        self.logvar = nn.Linear(features + condition_size, latent)
        self.decodeL = nn.Linear(latent + condition_size, features)

    def encode_conditional(self, images: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of q(z|x, c)."""
        features = torch.cat([self.intermediate(self.encode(images)).flatten(1), condition], dim=1)
        return self.mu(features), self.logvar(features)

    def decode_conditional(self, z: Tensor, condition: Tensor) -> Tensor:
        """Return x̂ of z and c."""
        images: Tensor = self.decode_forward(torch.cat([z, condition], dim=1), use_sigmoid=False)
        return images


class ConditionalVariationalAutoencoder(VariationalDetector):
    """Residual, KL and ELBO of a variational autoencoder that is conditioned on covariates."""

    family = "cvae"
    Settings: ClassVar[type[ModelSettings]] = ConditionalSettings
    settings: ConditionalSettings
    network: ConditionalVarAutoEncoder

    def build(self) -> nn.Module:
        """Return encoder and decoder."""
        conditioning = self.build_conditioning(self.settings.covariates)
        return ConditionalVarAutoEncoder(conditioning.size, **self.architecture())

    def training_condition(self, n: int, step_info: StepInfo) -> Tensor | None:
        """Return the condition of the n images of a training step, with condition dropout."""
        return self.condition_with_dropout(n, step_info, self.settings.condition_dropout)

    def posterior_parameters(self, images: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of q(z|x, c), each ``(B, latent)``."""
        condition = self.unknown_condition(images) if condition is None else condition
        return self.network.encode_conditional(pad(images, self.padded), condition)

    def output(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return x̂ ``(B, 1, *S)``, or its log-odds."""
        condition = self.unknown_condition(z) if condition is None else condition
        return crop(self.network.decode_conditional(z, condition), self.image_shape)
