"""Conditional variational autoencoder: what is normal for this age and sex.

Idea. Healthy brains of the old have wider ventricles than those of the young. A model that is told age and sex
need not keep them in its code, and does not call normal ageing an anomaly, nor an old brain in a young subject
normal. Encoder and decoder are told c, the standardised age, the sex, and whether each is known, or whatever else
the volumes come with (``covariates``); the prior of the code does not depend on c:

    log p(x|c) ≥ ELBO = E_q[log p(x|z, c)] − KL(q(z|x, c) ‖ p(z)),    p(z) = N(0, 1)
    μ, log σ² = A [h(x); c] + a,    x̂ = D(B [z; c] + b)              c beside what the dense layers take
    L = (−log p(x|z, c) + β·KL) / N                                  β rises from 0 over the warm-up

In training each covariate is withheld by chance, so that the model knows what to do where it is not known.

Evidence: as the variational autoencoder's, given c: residual, KL, negative ELBO, and on request its other maps.

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
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import Evidence, ModelSettings, StepInfo
from anomaly.models.components.conditioning import Conditioning, condition_dropout
from anomaly.models.components.network import crop, pad
from anomaly.models.components.random_boxes import nothing_hidden
from anomaly.models.components.variational import beta_at, free_energy, kl_per_dim, reparameterize
from anomaly.models.components.variational_detector import CodeSettings, VariationalDetector


class ConditionalSettings(CodeSettings):
    """Settings of the conditional variational autoencoder."""

    family: Literal["cvae"] = "cvae"
    covariates: Covariates = Field(
        AGE_AND_SEX, description="what it is told; values 0: a number, n: one of 0 to n − 1"
    )
    drop: float = Field(0.2, ge=0, le=1, description="chance in training of each covariate that it is withheld")


class ConditionalVarAutoEncoder(VarAutoEncoder):
    """MONAI's, whose dense layers take c beside the features and beside the code."""

    mu: nn.Linear
    logvar: nn.Linear
    decodeL: nn.Linear  # noqa: N815 - MONAI's name

    def __init__(self, told: int, **architecture: Any) -> None:
        super().__init__(**architecture)
        latent, features = self.latent_size, self.decodeL.out_features
        self.mu = nn.Linear(features + told, latent)
        self.logvar = nn.Linear(features + told, latent)
        self.decodeL = nn.Linear(latent + told, features)

    def encode_given(self, images: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of q(z|x, c)."""
        told = torch.cat([self.intermediate(self.encode(images)).flatten(1), given], dim=1)
        return self.mu(told), self.logvar(told)

    def decode_given(self, z: Tensor, given: Tensor) -> Tensor:
        """Return x̂ of z and c."""
        images: Tensor = self.decode_forward(torch.cat([z, given], dim=1), use_sigmoid=False)
        return images


class ConditionalVariationalAutoencoder(VariationalDetector):
    """Residual, KL and ELBO of a variational autoencoder that is told covariates.

    Attributes
    ----------
    conditioning
        Makes c, called ``given`` below, of covariates.
    """

    family = "cvae"
    Settings: ClassVar[type[ModelSettings]] = ConditionalSettings
    settings: ConditionalSettings
    network: ConditionalVarAutoEncoder
    conditioning: Conditioning

    def build(self) -> nn.Module:
        """Return encoder and decoder."""
        self.conditioning = Conditioning(self.settings.covariates)
        return ConditionalVarAutoEncoder(self.conditioning.size, **self.architecture())

    def prepare(self, train: VolumeSource) -> None:
        """Learn the mean and SD of covariates that are numbers."""
        self.conditioning.learn(train)

    def encode(self, images: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return μ and log σ², each ``(B, latent)``."""
        mu, log_variance = self.network.encode_given(pad(images, self.padded), self._told(images, given))
        return mu.float(), log_variance.float().clamp(-12, 12)

    def output(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """Return x̂ ``(B, 1, *S)``, or its log-odds."""
        return crop(self.network.decode_given(z, self._told(z, given)), self.image_shape)

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the negative ELBO per voxel given what is not withheld of the covariates, and its parts."""
        covariates = self.conditioning.unknown(len(images)) if at.covariates is None else at.covariates
        given = self.conditioning(condition_dropout(covariates, self.settings.drop, at.rng))
        shown, hidden = corrupted or (images, nothing_hidden(images))
        mu, log_variance = self.encode(shown, given)
        z = torch.where(hidden[:, None], mu, reparameterize(mu, log_variance, at.rng))
        likelihood = self.log_likelihood(images, self.output(z, given), mask)
        beta = beta_at(self.settings.beta, self.settings.beta_warmup, at)
        return free_energy(
            likelihood, kl_per_dim(mu, log_variance), mask, beta, self.settings.free_bits, counted=~hidden
        )

    def evidence_given(self, images: Tensor, mask: Tensor, covariates: Tensor) -> Evidence:
        """Return the evidence given covariates ``(B, D)``."""
        return self.answer(images, mask, self.conditioning(covariates))

    def sample_given(self, covariates: Tensor, rng: torch.Generator) -> Tensor:
        """Return a new image ``(n, 1, *S)`` for each row of covariates ``(n, D)``: decodings of random codes."""
        return self.decode(self.codes(len(covariates), rng), self.conditioning(covariates))

    def interpolate_given(
        self, first: Tensor, second: Tensor, about: tuple[Tensor, Tensor], weight: float
    ) -> Tensor:
        """Return the images between: code and c both go straight; see ``ConditionalInterpolator``."""
        start, end = (self.conditioning(covariates) for covariates in about)
        code = torch.lerp(self.encode(first, start)[0], self.encode(second, end)[0], weight)
        return self.decode(code, torch.lerp(start, end, weight))

    def _told(self, like: Tensor, given: Tensor | None) -> Tensor:
        """Return c; where nothing is given, that of subjects of whom nothing is known."""
        return self.conditioning(self.conditioning.unknown(len(like))) if given is None else given
