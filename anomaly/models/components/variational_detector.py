"""The base detector of models with one Gaussian code per image (VAEs). A building block, not a family.

A family provides the network: q(z|x) = N(μ, σ²) by ``encode`` and the output of the decoder by ``output``. The
output is x̂, or its log-odds with a Bernoulli likelihood; x̂(z) is ``decode``. This class computes the loss and the
evidence:

    ELBO = E_q[log p(x|z)] − KL(q‖p)
    L = (−log p(x|z) + β·KL) / N                                   N voxels inside the mask
    log p(x) ≥ log 1/k Σᵢ p(x|zᵢ) p(zᵢ) / q(zᵢ|x),  zᵢ ~ q          importance-weighted bound, tighter as k grows
    unit d is active where Var_x(μ_d) > 0.01                       few active units: posterior collapse
    x_missing ← x̂(μ(x))_missing, repeatedly                        imputation (pseudo-Gibbs, at the mean code)
    x' = argmin KL(x') − log p(x'|μ(x')) + λ·TV(x' − x)            restoration, by gradient descent from x' = x

With context encoding, boxes are hidden in some training images. They are reconstructed from the mean code of the
image with boxes, and their KL is not part of the loss.

Source: Kingma & Welling 2014 (ELBO); Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders" (bound,
active units); Rezende, Mohamed & Wierstra 2014, "Stochastic Backpropagation", appendix F (imputation); Zimmerer et
al. 2018, "Context-encoding Variational Autoencoder for Unsupervised Anomaly Detection"; Zimmerer et al. 2019,
"Unsupervised Anomaly Localization using Variational Auto-Encoders" (gradient map); Chen et al. 2020, "Unsupervised
lesion detection via image restoration with a normative prior".
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from anomaly.core.covariates import Covariate
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import NORM_GROUPS, Diagnostics, Evidence, StepInfo, apply_mask, residual, target_slice
from anomaly.models.components.conditioning import Conditioning, condition_dropout
from anomaly.models.components.conv_autoencoder import BottleneckDetector, LatentSettings
from anomaly.models.components.random_boxes import hide_boxes
from anomaly.models.components.variational import (
    DiagonalGaussian,
    Likelihood,
    check_unit_range,
    expected,
    free_energy,
    log_density,
    log_likelihood,
)

ACTIVE_VARIANCE = 0.01  # Var_x(μ_d) above which a latent unit is active (Burda et al. 2016)
MIN_ACTIVE_SHARE = 0.1  # of the units; below it, the posterior has collapsed
DIAGNOSTIC_BATCHES = 16  # number of batches that active units are counted on
MAX_LOG_VARIANCE = 12.0  # bound of |log σ²| of the posterior
TV_SMOOTHING = 0.05  # intensity units; total variation is quadratic below it, so that it is differentiable


class CodeSettings(LatentSettings):
    """Settings of a model with one Gaussian code per image."""

    beta: float = Field(1.0, ge=0, description="weight of the KL; 1 is the ELBO")
    beta_warmup: float = Field(0.2, ge=0, le=1, description="share of the training over which β rises from 0")
    free_bits: float = Field(
        0.0,
        ge=0,
        description="λ: free bits per latent unit, nats; KL below it is not penalised; against posterior collapse",
    )
    likelihood: Likelihood = Field(
        "gaussian", description="likelihood of a voxel; bernoulli: for intensities of 0 to 1"
    )
    noise_sd: float = Field(0.1, gt=0, description="s: SD of the Gaussian likelihood, intensity units")
    context_encoding: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the training images in which boxes are hidden and must be reconstructed",
    )
    kl_gradient: bool = Field(
        False, description="also compute the map |residual| · |∂KL/∂x|; doubles the scoring time"
    )
    restoration_steps: int = Field(
        0,
        ge=0,
        description="gradient steps of the map restoration, each of three times the scoring time; 0 = no such map",
    )
    restoration_rate: float = Field(0.05, gt=0, le=1, description="size of a step, in units of noise_sd²")
    restoration_tv: float = Field(
        10.0, ge=0, description="λ: nats per intensity unit of total variation between a scan and its restoration"
    )

    @model_validator(mode="after")
    def _check_restoration_step(self) -> CodeSettings:
        if self.restoration_steps and self.likelihood == "bernoulli":
            raise ValueError(
                "restoration_steps needs likelihood gaussian, whose noise_sd sets the size of a step; set it to 0"
            )
        # Multiplied by noise_sd², the largest curvature of the likelihood is 1, and that of the total variation is:
        curvature = self.noise_sd**2 * self.restoration_tv * 4 * self.view.spatial_dims / TV_SMOOTHING
        if self.restoration_steps and self.restoration_rate * (1 + curvature) > 1:
            raise ValueError(
                f"restoration_rate {self.restoration_rate:g} overshoots with restoration_tv "
                f"{self.restoration_tv:g}; lower it to {1 / (1 + curvature):.2g} or less"
            )
        return self


class VariationalDetector(BottleneckDetector):
    """A detector with one Gaussian code per image.

    ``condition`` ``(B, ·)`` is the condition of a conditional model; None for unknown subjects, and always for an
    unconditional model.

    Attributes
    ----------
    conditioning
        Computes conditions from covariates; None for an unconditional model. Set by :meth:`build`.
    """

    settings: CodeSettings
    conditioning: Conditioning | None

    @property
    def is_conditional(self) -> bool:
        """Whether the model has a condition."""
        return self.conditioning is not None

    @abstractmethod
    def posterior_parameters(self, images: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of q(z|x), each ``(B, latent)``, for images ``(B, C, *S)``."""

    @abstractmethod
    def output(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the output of the decoder ``(B, 1, *S)`` for codes ``(B, latent)``: x̂, or its log-odds."""

    def encode(self, images: Tensor, condition: Tensor | None = None) -> DiagonalGaussian:
        """Return q(z|x) of images ``(B, C, *S)``."""
        mu, log_variance = self.posterior_parameters(images, condition)
        return DiagonalGaussian(mu.float(), log_variance.float().clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE))

    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return x̂ ``(B, 1, *S)`` of codes ``(B, latent)``, in image units."""
        return expected(self.output(z, condition), self.settings.likelihood)

    def condition(self, covariates: Tensor | None) -> Tensor | None:
        """Return the condition for covariates ``(B, D)``; None where there is none."""
        return None if covariates is None or self.conditioning is None else self.conditioning(covariates)

    def build_conditioning(self, covariates: Sequence[Covariate]) -> Conditioning:
        """Set up the conditioning on covariates."""
        conditioning = Conditioning(covariates)
        self.conditioning = conditioning
        return conditioning

    def prepare(self, train: VolumeSource) -> None:
        """Learn the statistics of covariates, for a conditional model."""
        if self.conditioning is not None:
            self.conditioning.fit(train)

    def unknown_condition(self, like: Tensor) -> Tensor:
        """Return the condition of unknown subjects, one for each image or code; ``(B, 0)`` without a condition."""
        if self.conditioning is None:
            return like.new_empty((len(like), 0))
        condition: Tensor = self.conditioning(self.conditioning.unknown(len(like)))
        return condition

    def training_condition(self, n: int, step_info: StepInfo) -> Tensor | None:
        """Return the condition of the n images of a training step; None for an unconditional model."""
        del n, step_info
        return None

    def condition_with_dropout(self, n: int, step_info: StepInfo, probability: float) -> Tensor | None:
        """Return the condition of the n images of a training step, with condition dropout."""
        if self.conditioning is None:
            return None
        covariates = self.conditioning.unknown(n) if step_info.covariates is None else step_info.covariates
        return self.condition(condition_dropout(covariates, probability, step_info.rng))

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the negative ELBO per voxel, with a warm-up of β and free bits, and its parts."""
        settings, condition = self.settings, self.training_condition(len(images), step_info)
        inputs, has_boxes = corrupted or (images, images.new_zeros(len(images), dtype=torch.bool))
        posterior = self.encode(inputs, condition)
        z = torch.where(has_boxes[:, None], posterior.mu, posterior.sample(step_info.rng))
        likelihood = self.log_likelihood(images, self.output(z, condition), mask)
        beta = step_info.linear_warmup(settings.beta, settings.beta_warmup)
        divergence = posterior.kl_per_dim()
        return free_energy(likelihood, divergence, mask, beta, settings.free_bits, counted=~has_boxes)

    def check(self, train: VolumeSource) -> None:
        """Refuse a latent that could copy the image, and intensities outside the range of the likelihood."""
        super().check(train)
        if self.settings.likelihood == "bernoulli":
            check_unit_range(train)

    def architecture(self) -> dict[str, Any]:
        """Return the arguments of MONAI's VarAutoEncoder, for images padded until every stage can halve them."""
        settings = self.settings
        return {
            "spatial_dims": self.view.spatial_dims,
            "in_shape": (self.view.channels, *self.padded),
            "out_channels": 1,
            "latent_size": settings.latent_size,
            "channels": settings.channels,
            "strides": [2] * len(settings.channels),
            "norm": ("group", {"num_groups": NORM_GROUPS}),
            "act": "leakyrelu",
            "use_sigmoid": False,
        }

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return images with hidden boxes and which images have them; nothing without context encoding."""
        if not self.settings.context_encoding:
            return ()
        return hide_boxes(images, mask, self.settings.context_encoding, rng)

    def log_likelihood(self, images: Tensor, output: Tensor, mask: Tensor) -> Tensor:
        """Return log p(x|z) of each image ``(B,)``, in nats, over the voxels inside the mask."""
        return log_likelihood(images, output, mask, self.settings.noise_sd, self.settings.likelihood)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the decoding of the mean code."""
        del mask
        return self.decode(self.encode(images).mu)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return μ ``(B, latent)``."""
        del mask
        return self.encode(images).mu

    def random_codes(self, n: int, rng: torch.Generator) -> Tensor:
        """Return n random codes z ~ N(0, 1), ``(n, latent)``."""
        return torch.randn((n, self.settings.latent_size), generator=rng, device=rng.device)

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` new images ``(n, 1, *S)``: decodings of random codes."""
        return self.decode(self.random_codes(n, rng), self.condition(covariates))

    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return images between ``first`` and ``second``; code and condition are interpolated."""
        start, end = (None, None)
        if covariates is not None:
            start, end = self.condition(covariates[0]), self.condition(covariates[1])
        z = torch.lerp(self.encode(first, start).mu, self.encode(second, end).mu, weight)
        return self.decode(z, None if start is None or end is None else torch.lerp(start, end, weight))

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the residual, the KL and the negative ELBO at the mean code, and the maps of the settings."""
        condition = self.condition(covariates)
        posterior = self.encode(images, condition)
        output = self.output(posterior.mu, condition)
        reconstruction = expected(output, self.settings.likelihood)
        divergence = posterior.kl()
        maps = {"residual": residual(images, reconstruction, mask)}
        if self.settings.kl_gradient:
            maps["kl_gradient"] = maps["residual"].abs() * apply_mask(self.kl_gradient(images, condition), mask)
        if self.settings.restoration_steps:
            maps["restoration"] = residual(images, target_slice(self.restore(images, mask, condition)), mask)
        terms = {"kl": divergence, "negative_elbo": divergence - self.log_likelihood(images, output, mask)}
        embedding = posterior.mu if condition is None else None  # embed() encodes without the condition
        return Evidence(maps, apply_mask(reconstruction, mask), terms, embedding)

    def kl_gradient(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return |∂KL/∂x| of the target slice ``(B, 1, *S)``; enables gradients locally."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            variable = images.detach().clone().requires_grad_()
            total = self.encode(variable, _clone(condition)).kl().sum()
            (gradient,) = torch.autograd.grad(total, variable)
        return target_slice(gradient).abs()

    def restore(self, images: Tensor, mask: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return x' ``(B, C, *S)``: images after gradient descent on :meth:`restoration_objective`.

        Only voxels inside the mask change. Enables gradients locally.
        """
        settings = self.settings
        step = settings.restoration_rate * settings.noise_sd**2
        with torch.inference_mode(mode=False), torch.enable_grad():
            original, inside, condition = images.detach().clone(), mask.clone(), _clone(condition)
            restored = original
            for _ in range(settings.restoration_steps):
                variable = restored.detach().requires_grad_()
                total = self.restoration_objective(variable, original, inside, condition).sum()
                (gradient,) = torch.autograd.grad(total, variable)
                restored = variable - step * gradient * inside
        return restored.detach()

    def restoration_objective(
        self, restored: Tensor, images: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Return KL(x') − log p(x'|μ(x')) + λ·TV(x' − x) of each image ``(B,)``, in nats."""
        posterior = self.encode(restored, condition)
        output = self.output(posterior.mu, condition)
        negative_elbo = posterior.kl() - self.log_likelihood(restored, output, mask)
        return negative_elbo + self.settings.restoration_tv * total_variation(restored - images)

    @torch.no_grad()
    def importance_bound(
        self, images: Tensor, mask: Tensor, k: int, rng: torch.Generator, condition: Tensor | None = None
    ) -> Tensor:
        """Return log 1/k Σ p(x|zᵢ) p(zᵢ) / q(zᵢ|x) of each image ``(B,)``, in nats; k = 1 estimates the ELBO."""
        posterior = self.encode(images, condition)
        weights = []
        for _ in range(k):
            z = posterior.sample(rng)
            zeros = torch.zeros_like(z)
            ratio = log_density(z, zeros, zeros) - log_density(z, *posterior)
            weights.append(self.log_likelihood(images, self.output(z, condition), mask) + ratio)
        return torch.stack(weights).logsumexp(dim=0) - math.log(k)

    @torch.no_grad()
    def impute(
        self, images: Tensor, missing: Tensor, mask: Tensor, steps: int = 20, condition: Tensor | None = None
    ) -> Tensor:
        """Return images ``(B, 1, *S)`` with missing voxels imputed from the others.

        Parameters
        ----------
        images, mask
            As for :meth:`evidence`; the intensities of missing voxels are not used.
        missing
            ``(B, 1, *S)`` bool, for the target slice.
        steps
            Number of iterations; the first one starts from the decoding of the prior mean.
        """
        filled, middle = images.clone(), images.shape[1] // 2
        imputed = self.decode(images.new_zeros((len(images), self.settings.latent_size)), condition)
        for _ in range(steps):
            filled[:, middle : middle + 1] = torch.where(missing & mask, imputed, target_slice(images))
            imputed = self.decode(self.encode(filled, condition).mu, condition)
        return torch.where(missing & mask, imputed, target_slice(images))

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return the number of active latent units, and a warning if the posterior has collapsed."""
        active = self.active_units(images for images, _, _ in itertools.islice(batches, DIAGNOSTIC_BATCHES))
        number, warnings = int(active.sum()), []
        if number < MIN_ACTIVE_SHARE * len(active):
            warnings.append(
                f"the posterior has collapsed: {number} of {len(active)} latent units are active; lower "
                "model.beta, raise model.free_bits, or shorten model.latent_size"
            )
        return Diagnostics({"active_units": float(number)}, tuple(warnings))

    @torch.no_grad()
    def active_units(self, batches: Iterable[Tensor]) -> Tensor:
        """Return which latent units are active on images ``(B, C, *S)``, ``(latent,)`` bool."""
        codes = torch.cat([self.encode(images).mu for images in batches])
        return codes.var(dim=0, correction=0) > ACTIVE_VARIANCE


def _clone(tensor: Tensor | None) -> Tensor | None:
    """Return a copy that autograd can use, also of a tensor that was created in inference mode."""
    return None if tensor is None else tensor.clone()


def total_variation(values: Tensor) -> Tensor:
    """Return the total variation of each image ``(B,)``, summed over voxels and axes, smoothed at 0."""
    total = torch.zeros(len(values), device=values.device)
    for axis in range(2, values.ndim):
        total = total + ((values.diff(dim=axis) ** 2 + TV_SMOOTHING**2).sqrt() - TV_SMOOTHING).flatten(1).sum(1)
    return total
