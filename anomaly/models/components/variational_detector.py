"""What can be asked of a model that has one Gaussian code per image. A building block, not a family.

A family gives the network, q(z|x) = N(μ, σ²) by ``encode``, the decoder's output by ``output``, and its loss. The
output is x̂ itself, or its log-odds with a Bernoulli likelihood; x̂(z) is ``decode``. Here are the questions that
then have one answer:

    ELBO = E_q[log p(x|z)] − KL(q‖p)
    log p(x) ≥ log 1/k Σᵢ p(x|zᵢ) p(zᵢ) / q(zᵢ|x),  zᵢ ~ q          importance-weighted bound, tighter as k grows
    unit d is active where Var_x(μ_d) > 0.01                       few active units: the code has collapsed
    x_missing ← x̂(μ(x))_missing, again and again                  imputation (pseudo-Gibbs, at the mean code)
    x' = argmin KL(x') − log p(x'|μ(x')) + λ·TV(x' − x)            restoration, by gradient descent from x' = x

Source: Kingma & Welling 2014 (ELBO); Burda, Grosse & Salakhutdinov 2016, "Importance Weighted Autoencoders" (bound,
active units); Rezende, Mohamed & Wierstra 2014, "Stochastic Backpropagation", appendix F (imputation); Zimmerer et
al. 2019, "Unsupervised Anomaly Localization using Variational Auto-Encoders" (gradient map); Chen et al. 2020,
"Unsupervised lesion detection via image restoration with a normative prior".
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from anomaly.core.image_views import VolumeSource
from anomaly.models.base import Diagnostics, Evidence
from anomaly.models.components.conv_autoencoder import BottleneckDetector, LatentSettings
from anomaly.models.components.network import GROUPS, apply_mask, residual, target_slice
from anomaly.models.components.random_boxes import hide_boxes
from anomaly.models.components.variational import (
    Likelihood,
    check_unit_range,
    expected,
    kl,
    log_density,
    log_likelihood,
    reparameterize,
)

ACTIVE = 0.01  # Var_x(μ_d) of a unit that says something of the image (Burda et al. 2016)
FEWEST_ACTIVE = 0.1  # share of the units; fewer, and the code has collapsed
HEALTH_BATCHES = 16  # that active units are counted on
SMOOTH_TV = 0.05  # differences well below it, intensity units, count squared, so that TV has a slope everywhere


class CodeSettings(LatentSettings):
    """Settings of a model with one Gaussian code per image."""

    beta: float = Field(1.0, ge=0, description="weight of the KL; 1 is the ELBO")
    beta_warmup: float = Field(0.2, ge=0, le=1, description="share of the training over which β rises from 0")
    free_bits: float = Field(
        0.0, ge=0, description="λ: mean KL of a latent unit, nats, that is not pushed down; against collapse"
    )
    likelihood: Likelihood = Field(
        "gaussian", description="of a voxel; bernoulli: the probability that it is 1, for intensities of 0 to 1"
    )
    noise_sd: float = Field(0.1, gt=0, description="s: SD of the Gaussian likelihood, intensity units")
    context_encoding: float = Field(
        0.0, ge=0, le=1, description="share of the images whose boxes are hidden and must be rebuilt"
    )
    kl_gradient: bool = Field(False, description="also give the map |residual| · |∂KL/∂x|; doubles scoring time")
    restoration_steps: int = Field(
        0, ge=0, description="steps of the map restoration, each three times the scoring time; 0 = no such map"
    )
    restoration_rate: float = Field(0.05, gt=0, le=1, description="size of a step, in units of noise_sd²")
    restoration_tv: float = Field(
        10.0, ge=0, description="λ: nats per intensity unit of total variation between a scan and its restoration"
    )

    @model_validator(mode="after")
    def _steps_lead_downhill(self) -> CodeSettings:
        if self.restoration_steps and self.likelihood == "bernoulli":
            raise ValueError(
                "restoration_steps needs likelihood gaussian, whose noise_sd sets the size of a step; set it to 0"
            )
        # Times noise_sd², the largest curvature of the likelihood is 1; of the total variation it is:
        steepest = self.noise_sd**2 * self.restoration_tv * 4 * self.view.spatial_dims / SMOOTH_TV
        if self.restoration_steps and self.restoration_rate * (1 + steepest) > 1:
            raise ValueError(
                f"restoration_rate {self.restoration_rate:g} overshoots with restoration_tv "
                f"{self.restoration_tv:g}; lower it to {1 / (1 + steepest):.2g} or less"
            )
        return self


class VariationalDetector(BottleneckDetector):
    """A detector with one Gaussian code per image.

    ``given`` is what a conditional model is told beside the images, ``(B, G)``; None where nothing is known, and
    always for a model that is not conditional.
    """

    settings: CodeSettings

    @abstractmethod
    def encode(self, images: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of images ``(B, C, *S)``, each ``(B, latent)``."""

    @abstractmethod
    def output(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """Return the decoder's output ``(B, 1, *S)`` of codes ``(B, latent)``: x̂, or its log-odds."""

    def decode(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """Return x̂ ``(B, 1, *S)`` of codes ``(B, latent)``, in image units."""
        return expected(self.output(z, given), self.settings.likelihood)

    def check(self, train: VolumeSource) -> None:
        """Refuse a latent that could copy the image, and intensities that the likelihood cannot explain."""
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
            "norm": ("group", {"num_groups": GROUPS}),
            "act": "leakyrelu",
            "use_sigmoid": False,
        }

    def corrupt(self, images: Tensor, mask: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return images some of which have hidden boxes, and which of them, where the settings ask for it."""
        if not self.settings.context_encoding:
            return ()
        return hide_boxes(images, mask, self.settings.context_encoding, rng)

    def log_likelihood(self, images: Tensor, output: Tensor, mask: Tensor) -> Tensor:
        """Return log p(x|z) of each image ``(B,)``, nats, over the voxels inside the mask, given :meth:`output`."""
        return log_likelihood(images, output, mask, self.settings.noise_sd, self.settings.likelihood)

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the decoding of the mean code."""
        del mask
        return self.decode(self.encode(images)[0])

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return μ ``(B, latent)``."""
        del mask
        return self.encode(images)[0]

    def codes(self, n: int, rng: torch.Generator) -> Tensor:
        """Return n random codes z ~ N(0, 1), ``(n, latent)``."""
        return torch.randn((n, self.settings.latent_size), generator=rng, device=rng.device)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return ``n`` new images ``(n, 1, *S)``: decodings of random codes."""
        return self.decode(self.codes(n, rng))

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return what the settings ask for, of subjects of whom nothing is known; see the module's docstring."""
        return self.answer(images, mask)

    def answer(self, images: Tensor, mask: Tensor, given: Tensor | None = None) -> Evidence:
        """Return the residual, the KL and the negative ELBO at the mean code, and the maps of the settings."""
        mu, log_variance = self.encode(images, given)
        output = self.output(mu, given)
        reconstruction = expected(output, self.settings.likelihood)
        divergence = kl(mu, log_variance)
        maps = {"residual": residual(images, reconstruction, mask)}
        if self.settings.kl_gradient:
            maps["kl_gradient"] = maps["residual"].abs() * apply_mask(self.kl_gradient(images, given), mask)
        if self.settings.restoration_steps:
            maps["restoration"] = residual(images, target_slice(self.restored(images, mask, given)), mask)
        terms = {"kl": divergence, "negative_elbo": divergence - self.log_likelihood(images, output, mask)}
        embedding = mu if given is None else None  # embed() encodes without the condition
        return Evidence(maps, apply_mask(reconstruction, mask), terms, embedding)

    def kl_gradient(self, images: Tensor, given: Tensor | None = None) -> Tensor:
        """Return |∂KL/∂x| of the middle channel ``(B, 1, *S)``; switches gradients on for itself alone."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            variable = images.detach().clone().requires_grad_()
            total = kl(*self.encode(variable, _own(given))).sum()
            (gradient,) = torch.autograd.grad(total, variable)
        return target_slice(gradient).abs()

    def restored(self, images: Tensor, mask: Tensor, given: Tensor | None = None) -> Tensor:
        """Return x' ``(B, C, *S)``: images moved downhill on :meth:`surprise`, inside the mask.

        Switches gradients on for itself alone.
        """
        settings = self.settings
        step = settings.restoration_rate * settings.noise_sd**2
        with torch.inference_mode(mode=False), torch.enable_grad():
            original, inside, told = images.detach().clone(), mask.clone(), _own(given)
            moved = original
            for _ in range(settings.restoration_steps):
                variable = moved.detach().requires_grad_()
                total = self.surprise(variable, original, inside, told).sum()
                (gradient,) = torch.autograd.grad(total, variable)
                moved = variable - step * gradient * inside
        return moved.detach()

    def surprise(self, moved: Tensor, images: Tensor, mask: Tensor, given: Tensor | None = None) -> Tensor:
        """Return KL(x') − log p(x'|μ(x')) + λ·TV(x' − x) of each image ``(B,)``, nats."""
        mu, log_variance = self.encode(moved, given)
        negative_elbo = kl(mu, log_variance) - self.log_likelihood(moved, self.output(mu, given), mask)
        return negative_elbo + self.settings.restoration_tv * total_variation(moved - images)

    @torch.no_grad()
    def importance_bound(
        self, images: Tensor, mask: Tensor, k: int, rng: torch.Generator, given: Tensor | None = None
    ) -> Tensor:
        """Return log 1/k Σ p(x|zᵢ) p(zᵢ) / q(zᵢ|x) of each image ``(B,)``, nats; k = 1 estimates the ELBO."""
        mu, log_variance = self.encode(images, given)
        weights = []
        for _ in range(k):
            z = reparameterize(mu, log_variance, rng)
            nothing = torch.zeros_like(z)
            ratio = log_density(z, nothing, nothing) - log_density(z, mu, log_variance)
            weights.append(self.log_likelihood(images, self.output(z, given), mask) + ratio)
        return torch.stack(weights).logsumexp(dim=0) - math.log(k)

    @torch.no_grad()
    def impute(
        self, images: Tensor, missing: Tensor, mask: Tensor, steps: int = 20, given: Tensor | None = None
    ) -> Tensor:
        """Return images ``(B, 1, *S)`` whose missing voxels are what the model expects there, given the others.

        Parameters
        ----------
        images, mask
            As for :meth:`evidence`; what the images hold at missing voxels is not looked at.
        missing
            ``(B, 1, *S)`` bool, of the middle channel.
        steps
            Times the missing voxels are rebuilt, from the decoding of the prior's mean at first.
        """
        filled, middle = images.clone(), images.shape[1] // 2
        expected = self.decode(images.new_zeros((len(images), self.settings.latent_size)), given)
        for _ in range(steps):
            filled[:, middle : middle + 1] = torch.where(missing & mask, expected, target_slice(images))
            expected = self.decode(self.encode(filled, given)[0], given)
        return torch.where(missing & mask, expected, target_slice(images))

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return how many units of the code are active, and a warning where the code has collapsed."""
        active = self.active_units(images for images, _, _ in itertools.islice(batches, HEALTH_BATCHES))
        number, warnings = int(active.sum()), []
        if number < FEWEST_ACTIVE * len(active):
            warnings.append(
                f"the code has collapsed: {number} of {len(active)} latent units say anything of an image; lower "
                "model.beta, raise model.free_bits, or shorten model.latent_size"
            )
        return Diagnostics({"active_units": float(number)}, tuple(warnings))

    @torch.no_grad()
    def active_units(self, batches: Iterable[Tensor]) -> Tensor:
        """Return which units of the code say something of images ``(B, C, *S)``, ``(latent,)`` bool."""
        codes = torch.cat([self.encode(images)[0] for images in batches])
        return codes.var(dim=0, correction=0) > ACTIVE


def _own(tensor: Tensor | None) -> Tensor | None:
    """Return a copy that gradients can be taken with, also of what was made under inference mode."""
    return None if tensor is None else tensor.clone()


def total_variation(values: Tensor) -> Tensor:
    """Return the sum over voxels and axes of |difference of neighbours| of each image ``(B,)``, smooth at 0."""
    total = torch.zeros(len(values), device=values.device)
    for axis in range(2, values.ndim):
        total = total + ((values.diff(dim=axis) ** 2 + SMOOTH_TV**2).sqrt() - SMOOTH_TV).flatten(1).sum(1)
    return total
