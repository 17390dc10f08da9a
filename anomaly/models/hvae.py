"""Hierarchical variational autoencoder: latent variables on several scales, from coarse to fine.

Idea. One latent vector cannot hold both the content of a whole image and its local detail. Here z₁ is a vector for
the whole image; z₂ and the finer levels are coarse maps with one value per cell and channel. The prior of each
level is predicted from the levels above it. A level therefore costs nats only for what is unusual *given the
coarser levels*, and the cost of each cell is a map:

    p(z) = N(z₁; 0, 1) Π p(z_l | z_<l),    p(z_l | z_<l) = N(m_l, s_l²)          decoder, top down
    q(z_l | x, z_<l) = N(m_l + Δm_l, s_l²·Δs_l²)                  the image changes the prior
    log p(x) ≥ E_q[log p(x|z)] − Σ_l KL_l,    KL_l = Σ_cells KL(q_l ‖ p_l)
    L = (Σ_l β_l·max(λ, KL_l) − log p(x|z)) / N                    β_l rises over a warm-up for each level
    log p(x) ≥ log 1/k Σᵢ p(x|zᵢ) Π_l p(z_l,ᵢ | z_<l,ᵢ) / q(z_l,ᵢ | x, z_<l,ᵢ)    tighter as k grows

The finer levels stay coarse and have few channels, because a fine level could copy a lesion. Free bits protect λ
nats of each level; without them a level that the decoder can do without would collapse to its prior.

Evidence, computed at the posterior means: the KL of each level as maps ``kl_1`` (coarsest), ``kl_2``, …, in nats
per voxel, where the nats of a cell are distributed over its voxels; the total KL and the negative ELBO per image;
and the residual x − x̂_k. The reconstruction x̂_k takes the k coarsest levels from the image and the finer levels
from their priors. A lesion that a fine level could copy is therefore missing in x̂_k.

Source: Sønderby et al. 2016, "Ladder Variational Autoencoders" (top-down inference, warm-up); Vahdat & Kautz 2020,
"NVAE: A Deep Hierarchical Variational Autoencoder" (q relative to p), here small; Havtorn et al. 2021,
"Hierarchical VAEs Know What They Don't Know" (finer levels from their priors); Burda, Grosse & Salakhutdinov 2016,
"Importance Weighted Autoencoders" (the bound).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.networks.blocks import Convolution
from pydantic import Field, model_validator
from torch import Tensor, nn

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import ImageView, VolumeSource
from anomaly.models.base import (
    NORM_GROUPS,
    Diagnostics,
    Evidence,
    ModelSettings,
    NetworkDetector,
    StepInfo,
    Width,
    apply_mask,
    crop,
    pad,
    padded_shape,
    residual,
)
from anomaly.models.components.variational import (
    Likelihood,
    check_unit_range,
    expected,
    free_energy,
    kl_between,
    log_density,
    log_likelihood,
    reparameterize,
)

MAX_LOG_VARIANCE = 8.0  # bound of |log s²| and |log Δs²|
COLLAPSED_NATS = 1.0  # KL per image; a level below it has collapsed to its prior
DIAGNOSTIC_BATCHES = 16  # number of batches that the mean KL of each level is taken over

Sampler = Callable[[Tensor, Tensor], Tensor]
"""Chooses a latent z from the mean μ and the log variance log σ² of its distribution."""


class HierarchicalSettings(ModelSettings):
    """Settings of the hierarchical variational autoencoder."""

    family: Literal["hvae"] = "hvae"
    view: ImageView = ImageView(kind="slice", axis=2)
    channels: tuple[Width, ...] = Field(
        (32, 64, 128, 128),
        min_length=1,
        description="channels of the stages; each halves the image; multiples of 8",
    )
    latents: tuple[int, ...] = Field(
        (64, 4, 2),
        min_length=2,
        description="length of z₁, then channels of the latent maps, from the coarsest stage up",
    )
    beta: float = Field(1.0, ge=0, description="weight of the KL; 1 is the ELBO")
    beta_warmup: tuple[float, ...] = Field(
        (0.2, 0.2, 0.2), description="share of the training over which β rises from 0, for each level"
    )
    free_bits: float = Field(
        2.0, ge=0, description="λ: free bits, nats; the mean KL of a level below it is not penalised"
    )
    likelihood: Likelihood = Field(
        "gaussian", description="likelihood of a voxel; bernoulli: for intensities of 0 to 1"
    )
    noise_sd: float = Field(0.1, gt=0, description="s: SD of the Gaussian likelihood, intensity units")
    residual_levels: int = Field(
        1, ge=1, description="k: number of coarsest levels that the reconstruction takes from the image"
    )

    @model_validator(mode="after")
    def _levels_fit_the_stages(self) -> HierarchicalSettings:
        if any(n < 1 for n in self.latents) or len(self.latents) > len(self.channels) + 1:
            raise ValueError(
                f"latents: found {list(self.latents)}; expected numbers of 1 or more, at most "
                f"{len(self.channels) + 1} of them: z₁ and one for each of the stages"
            )
        if len(self.beta_warmup) != len(self.latents) or not all(0 <= share <= 1 for share in self.beta_warmup):
            raise ValueError(f"beta_warmup: expected a share, 0 to 1, for each of the {len(self.latents)} latents")
        if self.residual_levels > len(self.latents):
            raise ValueError(
                f"residual_levels: found {self.residual_levels}; there are {len(self.latents)} latents"
            )
        return self


class LevelDistributions(NamedTuple):
    """Posterior and prior of one level, each ``(B, k, *cells)``; ``(B, k)`` for the first level."""

    mu: Tensor
    log_variance: Tensor
    prior_mu: Tensor
    prior_log_variance: Tensor

    def kl(self) -> Tensor:
        """Return KL(q ‖ p) of each unit, shaped as μ, in nats."""
        return kl_between(*self)

    def log_ratio(self, z: Tensor) -> Tensor:
        """Return log p(z) − log q(z) of each image ``(B,)``, in nats, for a sample z shaped as μ."""
        prior = log_density(z, self.prior_mu, self.prior_log_variance)
        return prior - log_density(z, self.mu, self.log_variance)


class LatentLevel(nn.Module):
    """One latent map: its prior comes from the decoder state, its posterior also from the image features.

    Attributes
    ----------
    combine
        Combines the decoder state and the image features.
    merge
        Puts the latent into the decoder state.
    """

    def __init__(self, dims: int, channels: int, units: int) -> None:
        super().__init__()
        self.prior = zero_initialised(Convolution(dims, channels, 2 * units, kernel_size=1, conv_only=True))
        self.combine = conv_block(dims, 2 * channels, channels)
        self.posterior = zero_initialised(Convolution(dims, channels, 2 * units, kernel_size=1, conv_only=True))
        self.merge = conv_block(dims, channels + units, channels)

    def forward(
        self, state: Tensor, features: Tensor | None, sampler: Sampler
    ) -> tuple[Tensor, LevelDistributions]:
        """Return the next decoder state and the distributions of the level.

        Without ``features`` the posterior equals the prior.
        """
        prior = self.prior(state).float()
        change = torch.zeros_like(prior)
        if features is not None:
            change = self.posterior(self.combine(torch.cat([state, features], dim=1))).float()
        level = level_distributions(prior, change)
        return self.merge(torch.cat([state, sampler(level.mu, level.log_variance)], dim=1)), level


class LadderNetwork(nn.Module):
    """A bottom-up encoder and a top-down decoder with latent levels.

    Attributes
    ----------
    stages
        The encoder; each stage halves the image.
    to_z1, from_z1
        From the coarsest features to the parameters of z₁, and from z₁ to the first decoder state.
    levels
        The latent maps z₂, z₃, …, coarsest first.
    decoder_stages, to_image
        The decoder stages, each of which doubles the resolution, and the last one, which gives the image.
    """

    def __init__(
        self, dims: int, in_channels: int, channels: Sequence[int], latents: Sequence[int], shape: Sequence[int]
    ) -> None:
        super().__init__()
        upwards = list(reversed(channels))
        self.units, self.top = latents[0], (upwards[0], *(n // 2 ** len(channels) for n in shape))
        self.stages = nn.ModuleList(
            conv_block(dims, a, b, strides=2) for a, b in itertools.pairwise([in_channels, *channels])
        )
        self.to_z1 = zero_initialised(nn.Linear(math.prod(self.top), 2 * self.units))
        self.from_z1 = nn.Linear(self.units, math.prod(self.top))
        self.levels = nn.ModuleList(LatentLevel(dims, c, k) for c, k in zip(upwards, latents[1:], strict=False))
        self.decoder_stages = nn.ModuleList(
            conv_block(dims, a, b, strides=2, is_transposed=True) for a, b in itertools.pairwise(upwards)
        )
        self.to_image = Convolution(dims, channels[0], 1, strides=2, conv_only=True, is_transposed=True)

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the parameters of z₁ ``(B, 2k)`` and the features of every stage, coarsest first.

        The parameters are Δm and log Δs², the change that the images ``(B, C, *S)`` make to the prior.
        """
        features: list[Tensor] = []
        for stage in self.stages:
            images = stage(images)
            features.insert(0, images)
        return self.to_z1(images.flatten(1)).float(), features

    def decode_top_down(
        self, change: Tensor, features: Sequence[Tensor], sampler: Sampler
    ) -> tuple[Tensor, list[LevelDistributions]]:
        """Return the output ``(B, 1, *S)`` and the distributions of all levels, coarsest first.

        Levels without features stay at their priors.
        """
        levels = [level_distributions(torch.zeros_like(change), change)]
        state = F.leaky_relu(self.from_z1(sampler(levels[0].mu, levels[0].log_variance))).reshape(-1, *self.top)
        for latent_level, level_features, up in itertools.zip_longest(
            self.levels, features, [*self.decoder_stages, self.to_image]
        ):
            if latent_level is not None:
                state, level = latent_level(state, level_features, sampler)
                levels.append(level)
            state = up(state)
        return state, levels


def conv_block(
    dims: int, in_channels: int, out_channels: int, strides: int = 1, is_transposed: bool = False
) -> nn.Module:
    """Return a convolution with group normalisation and activation."""
    convolution: nn.Module = Convolution(
        dims, in_channels, out_channels, strides, norm=("group", {"num_groups": NORM_GROUPS}), act="leakyrelu",
        is_transposed=is_transposed,
    )  # fmt: skip
    return convolution


def zero_initialised(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to 0 and return it, so that every level starts at the prior N(0, 1)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def level_distributions(prior: Tensor, change: Tensor) -> LevelDistributions:
    """Return the distributions of a level from the parameters of its prior and the change to them.

    Parameters
    ----------
    prior
        ``(B, 2k, *cells)``: m, then log s².
    change
        ``(B, 2k, *cells)``: Δm, then log Δs².
    """
    prior_mu, prior_log_variance = prior.chunk(2, dim=1)
    mean_change, log_factor = change.chunk(2, dim=1)
    prior_log_variance = prior_log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
    log_variance = prior_log_variance + log_factor.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
    return LevelDistributions(prior_mu + mean_change, log_variance, prior_mu, prior_log_variance)


def kl_per_voxel(divergence: Tensor, shape: Sequence[int]) -> Tensor:
    """Distribute the KL of units ``(B, k, *cells)`` over voxels ``(B, 1, *shape)``; the sum stays the same."""
    cells = divergence.sum(dim=1, keepdim=True)
    if cells.ndim == 2:  # one vector for the whole image
        return (cells / math.prod(shape)).reshape(-1, *[1] * (len(shape) + 1)).expand(-1, 1, *shape)
    share = math.prod(cells.shape[2:]) / math.prod(shape)
    # The interpolation is linear between the centres of cells and constant beyond them, which preserves the sum.
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return F.interpolate(cells * share, size=tuple(shape), mode=mode, align_corners=False)


class HierarchicalVariationalAutoencoder(NetworkDetector):
    """Residual and KL per level of a hierarchical variational autoencoder."""

    family = "hvae"
    Settings: ClassVar[type[ModelSettings]] = HierarchicalSettings
    settings: HierarchicalSettings
    network: LadderNetwork

    def build(self) -> nn.Module:
        """Return the network for images padded until every stage can halve them."""
        settings = self.settings
        return LadderNetwork(
            self.view.spatial_dims, self.view.channels, settings.channels, settings.latents, self.padded
        )

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape the network works on."""
        return padded_shape(self.image_shape, 2 ** len(self.settings.channels))

    def check(self, train: VolumeSource) -> None:
        """Refuse latents that could copy the image, and intensities outside the range of the likelihood."""
        if self.settings.likelihood == "bernoulli":
            check_unit_range(train)
        stages, (first, *maps) = len(self.settings.channels), self.settings.latents
        cells = [math.prod(n // 2 ** (stages - level) for n in self.padded) for level in range(len(maps))]
        units = first + sum(k * n for k, n in zip(maps, cells, strict=True))
        voxels = self.view.channels * math.prod(self.image_shape)
        if units >= voxels:
            raise TrainingError(
                f"found {units} latent units for an image of {voxels} voxels; expected fewer, or the network could "
                "copy lesions; shorten model.latents or lower its numbers, or add stages to model.channels"
            )

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the negative ELBO per voxel, with a warm-up of β for each level, and its parts."""
        del corrupted
        settings = self.settings
        output, levels = self.decode_top_down(
            *self.encode(images), lambda mu, log_variance: reparameterize(mu, log_variance, step_info.rng)
        )
        likelihood = self.log_likelihood(images, output, mask)
        divergence = torch.stack([level.kl().flatten(1).sum(1) for level in levels], dim=1)
        beta = divergence.new_tensor(
            [step_info.linear_warmup(settings.beta, share) for share in settings.beta_warmup]
        )
        parts = free_energy(likelihood, divergence, mask, beta, settings.free_bits)
        level_kl = divergence.sum(dim=0) / mask.sum().clamp_min(1)
        return {**parts, **{f"kl_{n}": value for n, value in enumerate(level_kl, start=1)}}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return x̂_k at the posterior means."""
        del mask
        return self.decode_coarse(*self.encode(images))

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the residual, the KL map of each level, the total KL and the negative ELBO, at the means."""
        del covariates
        change, features = self.encode(images)
        output, levels = self.decode_top_down(change, features, posterior_mean)
        coarse = self.decode_coarse(change, features)
        divergence = torch.stack([level.kl().flatten(1).sum(1) for level in levels]).sum(dim=0)
        likelihood = self.log_likelihood(images, output, mask)
        maps = {"residual": residual(images, coarse, mask)}
        for n, level in enumerate(levels, start=1):
            maps[f"kl_{n}"] = apply_mask(crop(kl_per_voxel(level.kl(), self.padded), self.image_shape), mask)
        terms = {"kl": divergence, "negative_elbo": divergence - likelihood}
        return Evidence(maps, apply_mask(coarse, mask), terms, embedding=mean_of_z1(change))

    def log_likelihood(self, images: Tensor, output: Tensor, mask: Tensor) -> Tensor:
        """Return log p(x|z) of each image ``(B,)``, in nats, summed over the voxels inside the mask."""
        return log_likelihood(images, output, mask, self.settings.noise_sd, self.settings.likelihood)

    @torch.no_grad()
    def importance_bound(self, images: Tensor, mask: Tensor, k: int, rng: torch.Generator) -> Tensor:
        """Return the bound on log p(x) of each image ``(B,)``, in nats; k = 1 estimates the ELBO."""
        encoded, weights = self.encode(images), []
        for _ in range(k):
            samples: list[Tensor] = []
            output, levels = self.decode_top_down(*encoded, _recording_sampler(samples, rng))
            ratios = [level.log_ratio(z) for level, z in zip(levels, samples, strict=True)]
            weights.append(self.log_likelihood(images, output, mask) + torch.stack(ratios).sum(dim=0))
        return torch.stack(weights).logsumexp(dim=0) - math.log(k)

    @torch.no_grad()
    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return the mean KL of each level, in nats per image, and a warning for each collapsed level."""
        batch_levels = [
            self.decode_top_down(*self.encode(images), posterior_mean)[1]
            for images, _, _ in itertools.islice(batches, DIAGNOSTIC_BATCHES)
        ]
        nats = {
            n: float(torch.cat([level.kl().flatten(1).sum(1) for level in levels]).mean())
            for n, levels in enumerate(zip(*batch_levels, strict=True), start=1)
        }
        warnings = tuple(
            f"level {n} of the latents has collapsed to its prior (KL {value:.2g} nats); raise model.free_bits, or "
            "remove the level from model.latents"
            for n, value in nats.items()
            if value < COLLAPSED_NATS
        )
        return Diagnostics({f"nats_{n}": value for n, value in nats.items()}, warnings)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of z₁ ``(B, latents[0])``."""
        del mask
        return mean_of_z1(self.encode(images)[0])

    def decode(self, z: Tensor) -> Tensor:
        """Return images ``(B, 1, *S)`` of codes z₁ ``(B, latents[0])``; the other levels take their prior means."""
        output, _ = self.decode_top_down(torch.cat([z, torch.zeros_like(z)], dim=1), [], posterior_mean)
        return expected(output, self.settings.likelihood)

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` new images ``(n, 1, *S)``, with every level sampled from its prior."""
        del covariates
        no_change = torch.zeros((n, 2 * self.settings.latents[0]), device=rng.device)
        output, _ = self.decode_top_down(
            no_change, [], lambda mu, log_variance: reparameterize(mu, log_variance, rng)
        )
        return expected(output, self.settings.likelihood)

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode images ``(B, C, *S)``; see :meth:`LadderNetwork.encode`."""
        return self.network.encode(pad(images, self.padded))

    def decode_top_down(
        self, change: Tensor, features: Sequence[Tensor], sampler: Sampler
    ) -> tuple[Tensor, list[LevelDistributions]]:
        """Return the output ``(B, 1, *S)``, x̂ or its log-odds, and the levels; see :class:`LadderNetwork`."""
        output, levels = self.network.decode_top_down(change, features, sampler)
        return crop(output, self.image_shape), levels

    def decode_coarse(self, change: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Return x̂_k ``(B, 1, *S)``."""
        output, _ = self.decode_top_down(change, features[: self.settings.residual_levels - 1], posterior_mean)
        return expected(output, self.settings.likelihood)


def mean_of_z1(change: Tensor) -> Tensor:
    """Return the mean of z₁ ``(B, latents[0])`` from the output of the encoder; its prior has mean 0."""
    mu, _ = change.chunk(2, dim=1)
    return mu


def posterior_mean(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return μ: the sampler of deterministic evidence."""
    del log_variance
    return mu


def _recording_sampler(samples: list[Tensor], rng: torch.Generator) -> Sampler:
    """Return a random sampler that appends every sample to a list."""

    def sampler(mu: Tensor, log_variance: Tensor) -> Tensor:
        samples.append(reparameterize(mu, log_variance, rng))
        return samples[-1]

    return sampler
