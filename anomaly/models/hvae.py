"""Hierarchical variational autoencoder: how surprising an image is, from coarse to fine.

Idea. One code vector cannot say both what an image shows as a whole and what stands where. Here z₁ is a vector
for the whole image, z₂ and finer ones are coarse maps, one value per cell and channel. Each level's prior is
predicted from the levels above it, so that only what is unusual *given the coarser picture* costs nats; the cost of
each cell is a map:

    p(z) = N(z₁; 0, 1) Π p(z_l | z_<l),    p(z_l | z_<l) = N(m_l, s_l²)          decoder, top down
    q(z_l | x, z_<l) = N(m_l + Δm_l, s_l²·Δs_l²)                  what the image adds to the prior
    log p(x) ≥ E_q[log p(x|z)] − Σ_l KL_l,    KL_l = Σ_cells KL(q_l ‖ p_l)
    L = (Σ_l β_l·max(λ, KL_l) − log p(x|z)) / N                    β_l rises over a warm-up for each level
    log p(x) ≥ log 1/k Σᵢ p(x|zᵢ) Π_l p(z_l,ᵢ | z_<l,ᵢ) / q(z_l,ᵢ | x, z_<l,ᵢ)    tighter as k grows

A finer level could copy a lesion: it stays coarse and has few channels. A level that is not needed would stay at
its prior and its map empty: free bits keep λ nats of each level alive.

Evidence, at means: KL per level as maps ``kl_1`` (coarsest), ``kl_2``, …, nats per voxel, each cell's nats spread
over its voxels; per image the total KL and the negative ELBO; and the residual x − x̂_k, where x̂_k takes only the k
coarsest levels from the image and the finer ones from their priors, so that a lesion which a fine level could copy
is not in x̂_k.

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
from anomaly.models.base import Evidence, ModelSettings
from anomaly.models.components.network import (
    GROUPS,
    NetworkDetector,
    Width,
    apply_mask,
    crop,
    pad,
    padded_shape,
    residual,
)
from anomaly.models.components.variational import (
    Likelihood,
    beta_at,
    expected,
    free_energy,
    kl_between,
    log_density,
    log_likelihood,
    refuse_what_is_no_probability,
    reparameterize,
)
from anomaly.training.protocols import Diagnostics, StepInfo

LIMIT = 8.0  # of |log s²|
LEAST_NATS = 1.0  # per image; a level of less says nothing
HEALTH_BATCHES = 16  # that the nats are averaged over

Draw = Callable[[Tensor, Tensor], Tensor]  # μ, log σ² → z


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
    free_bits: float = Field(2.0, ge=0, description="λ: mean KL of a level, nats, that is not pushed down")
    likelihood: Likelihood = Field(
        "gaussian", description="of a voxel; bernoulli: the probability that it is 1, for intensities of 0 to 1"
    )
    noise_sd: float = Field(0.1, gt=0, description="s: SD of the Gaussian likelihood, intensity units")
    residual_levels: int = Field(
        1, ge=1, description="k: levels, from the coarsest, that the residual's reconstruction takes from the image"
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


class Level(NamedTuple):
    """Posterior and prior of one level, each ``(B, k, *cells)``; of the first ``(B, k)``."""

    mu: Tensor
    log_variance: Tensor
    prior_mu: Tensor
    prior_log_variance: Tensor

    def kl(self) -> Tensor:
        """Return KL(q ‖ p) of each unit, shaped as μ."""
        return kl_between(*self)

    def log_ratio(self, z: Tensor) -> Tensor:
        """Return log p(z) − log q(z) of each image ``(B,)``, nats, of a sample z shaped as μ."""
        prior = log_density(z, self.prior_mu, self.prior_log_variance)
        return prior - log_density(z, self.mu, self.log_variance)


class Rung(nn.Module):
    """One latent map: predicted from the state above, corrected by the image, drawn, put into the state."""

    def __init__(self, dims: int, channels: int, units: int) -> None:
        super().__init__()
        self.prior = nothing_at_first(Convolution(dims, channels, 2 * units, kernel_size=1, conv_only=True))
        self.look = block(dims, 2 * channels, channels)
        self.posterior = nothing_at_first(Convolution(dims, channels, 2 * units, kernel_size=1, conv_only=True))
        self.merge = block(dims, channels + units, channels)

    def forward(self, state: Tensor, seen: Tensor | None, draw: Draw) -> tuple[Tensor, Level]:
        """Return the next state and the level; ``seen`` is None where there is no image."""
        prior = self.prior(state).float()
        change = torch.zeros_like(prior)
        if seen is not None:
            change = self.posterior(self.look(torch.cat([state, seen], dim=1))).float()
        level = level_of(prior, change)
        return self.merge(torch.cat([state, draw(level.mu, level.log_variance)], dim=1)), level


class Ladder(nn.Module):
    """Stages that look at the image bottom up, and levels that explain it top down."""

    def __init__(
        self, dims: int, in_channels: int, channels: Sequence[int], latents: Sequence[int], shape: Sequence[int]
    ) -> None:
        super().__init__()
        upwards = list(reversed(channels))
        self.units, self.top = latents[0], (upwards[0], *(n // 2 ** len(channels) for n in shape))
        self.stages = nn.ModuleList(
            block(dims, a, b, strides=2) for a, b in itertools.pairwise([in_channels, *channels])
        )
        self.code = nothing_at_first(nn.Linear(math.prod(self.top), 2 * self.units))
        self.start = nn.Linear(self.units, math.prod(self.top))
        self.rungs = nn.ModuleList(Rung(dims, c, k) for c, k in zip(upwards, latents[1:], strict=False))
        self.ups = nn.ModuleList(
            block(dims, a, b, strides=2, is_transposed=True) for a, b in itertools.pairwise(upwards)
        )
        self.out = Convolution(dims, channels[0], 1, strides=2, conv_only=True, is_transposed=True)

    def look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return what images ``(B, C, *S)`` say of z₁, and what is seen of them at each stage, coarsest first."""
        seen: list[Tensor] = []
        for stage in self.stages:
            images = stage(images)
            seen.insert(0, images)
        return self.code(images.flatten(1)).float(), seen

    def explain(self, change: Tensor, seen: Sequence[Tensor], draw: Draw) -> tuple[Tensor, list[Level]]:
        """Return the output ``(B, 1, *S)`` and the levels, coarsest first; what sees nothing is at its prior."""
        levels = [level_of(torch.zeros_like(change), change)]
        state = F.leaky_relu(self.start(draw(levels[0].mu, levels[0].log_variance))).reshape(-1, *self.top)
        for rung, look, up in itertools.zip_longest(self.rungs, seen, [*self.ups, self.out]):
            if rung is not None:
                state, level = rung(state, look, draw)
                levels.append(level)
            state = up(state)
        return state, levels


def block(dims: int, taken: int, given: int, strides: int = 1, is_transposed: bool = False) -> nn.Module:
    """Return convolution, group norm and activation."""
    convolution: nn.Module = Convolution(
        dims, taken, given, strides, norm=("group", {"num_groups": GROUPS}), act="leakyrelu",
        is_transposed=is_transposed,
    )  # fmt: skip
    return convolution


def nothing_at_first(layer: nn.Module) -> nn.Module:
    """Return a layer that gives 0 before it has learnt, so that every level starts at its prior, N(0, 1)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def level_of(prior: Tensor, change: Tensor) -> Level:
    """Return the level of m and log s², and Δm and log Δs², each beside the other in ``(B, 2k, *cells)``."""
    prior_mu, prior_log_variance = prior.chunk(2, dim=1)
    moved, log_factor = change.chunk(2, dim=1)
    prior_log_variance = prior_log_variance.clamp(-LIMIT, LIMIT)
    log_variance = prior_log_variance + log_factor.clamp(-LIMIT, LIMIT)
    return Level(prior_mu + moved, log_variance, prior_mu, prior_log_variance)


def spread(divergence: Tensor, shape: Sequence[int]) -> Tensor:
    """Return nats per voxel ``(B, 1, *shape)`` of the KL of units ``(B, k, *cells)``; the sum stays the same."""
    cells = divergence.sum(dim=1, keepdim=True)
    if cells.ndim == 2:  # one vector for the whole image
        return (cells / math.prod(shape)).reshape(-1, *[1] * (len(shape) + 1)).expand(-1, 1, *shape)
    share = math.prod(cells.shape[2:]) / math.prod(shape)
    # Between the centres of cells it is linear; beyond them, at the edge, constant: so nothing is lost.
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return F.interpolate(cells * share, size=tuple(shape), mode=mode, align_corners=False)


class HierarchicalVariationalAutoencoder(NetworkDetector):
    """Residual and KL per level of a hierarchical variational autoencoder."""

    family = "hvae"
    Settings: ClassVar[type[ModelSettings]] = HierarchicalSettings
    settings: HierarchicalSettings
    network: Ladder

    def build(self) -> nn.Module:
        """Return the ladder for images padded until every stage can halve them."""
        settings = self.settings
        return Ladder(self.view.spatial_dims, self.view.channels, settings.channels, settings.latents, self.padded)

    @property
    def padded(self) -> tuple[int, ...]:
        """The spatial shape the network works on."""
        return padded_shape(self.image_shape, 2 ** len(self.settings.channels))

    def check(self, train: VolumeSource) -> None:
        """Refuse levels that together could copy the image, and intensities that the likelihood cannot explain."""
        if self.settings.likelihood == "bernoulli":
            refuse_what_is_no_probability(train)
        stages, (first, *maps) = len(self.settings.channels), self.settings.latents
        cells = [math.prod(n // 2 ** (stages - level) for n in self.padded) for level in range(len(maps))]
        units = first + sum(k * n for k, n in zip(maps, cells, strict=True))
        voxels = self.view.channels * math.prod(self.image_shape)
        if units >= voxels:
            raise TrainingError(
                f"found {units} latent units for an image of {voxels} voxels; expected fewer, or the network could "
                "copy lesions; shorten model.latents or lower its numbers, or add stages to model.channels"
            )

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the negative ELBO per voxel, with β of each level warmed up, and its parts."""
        del corrupted
        settings = self.settings
        output, levels = self.explain(
            *self.look(images), lambda mu, log_variance: reparameterize(mu, log_variance, at.rng)
        )
        likelihood = self.log_likelihood(images, output, mask)
        divergence = torch.stack([level.kl().flatten(1).sum(1) for level in levels], dim=1)
        beta = divergence.new_tensor([beta_at(settings.beta, share, at) for share in settings.beta_warmup])
        parts = free_energy(likelihood, divergence, mask, beta, settings.free_bits)
        each = divergence.sum(dim=0) / mask.sum().clamp_min(1)
        return {**parts, **{f"kl_{n}": value for n, value in enumerate(each, start=1)}}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return x̂_k, at means."""
        del mask
        return self.coarse(*self.look(images))

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the residual, the KL map of each level, the total KL and the negative ELBO, at means."""
        change, seen = self.look(images)
        whole, levels = self.explain(change, seen, mean)
        coarse = self.coarse(change, seen)
        divergence = torch.stack([level.kl().flatten(1).sum(1) for level in levels]).sum(dim=0)
        likelihood = self.log_likelihood(images, whole, mask)
        maps = {"residual": residual(images, coarse, mask)}
        for n, level in enumerate(levels, start=1):
            maps[f"kl_{n}"] = apply_mask(crop(spread(level.kl(), self.padded), self.image_shape), mask)
        terms = {"kl": divergence, "negative_elbo": divergence - likelihood}
        return Evidence(maps, apply_mask(coarse, mask), terms, embedding=top_code(change))

    def log_likelihood(self, images: Tensor, output: Tensor, mask: Tensor) -> Tensor:
        """Return log p(x|z) of each image ``(B,)``, nats, over the voxels inside the mask, given the output."""
        return log_likelihood(images, output, mask, self.settings.noise_sd, self.settings.likelihood)

    @torch.no_grad()
    def importance_bound(self, images: Tensor, mask: Tensor, k: int, rng: torch.Generator) -> Tensor:
        """Return the bound on log p(x) of each image ``(B,)``, nats; k = 1 estimates the ELBO."""
        looks, weights = self.look(images), []
        for _ in range(k):
            drawn: list[Tensor] = []
            output, levels = self.explain(*looks, _kept(drawn, rng))
            ratios = [level.log_ratio(z) for level, z in zip(levels, drawn, strict=True)]
            weights.append(self.log_likelihood(images, output, mask) + torch.stack(ratios).sum(dim=0))
        return torch.stack(weights).logsumexp(dim=0) - math.log(k)

    @torch.no_grad()
    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return the mean KL of each level, nats per image, and a warning where a level says nothing."""
        some = (images for images, _, _ in itertools.islice(batches, HEALTH_BATCHES))
        looks = [self.explain(*self.look(images), mean)[1] for images in some]
        nats = {
            n: float(torch.cat([level.kl().flatten(1).sum(1) for level in levels]).mean())
            for n, levels in enumerate(zip(*looks, strict=True), start=1)
        }
        warnings = tuple(
            f"level {n} of the latents says nothing of an image (KL {value:.2g} nats); raise model.free_bits, or "
            "leave the level out of model.latents"
            for n, value in nats.items()
            if value < LEAST_NATS
        )
        return Diagnostics({f"nats_{n}": value for n, value in nats.items()}, warnings)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of z₁ ``(B, latents[0])``."""
        del mask
        return top_code(self.look(images)[0])

    def decode(self, z: Tensor) -> Tensor:
        """Return images ``(B, 1, *S)`` of codes z₁ ``(B, latents[0])``, the other levels at their priors' means."""
        images, _ = self.explain(torch.cat([z, torch.zeros_like(z)], dim=1), [], mean)
        return expected(images, self.settings.likelihood)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return ``n`` new images ``(n, 1, *S)``: every level drawn from its prior."""
        nothing = torch.zeros((n, 2 * self.settings.latents[0]), device=rng.device)
        output, _ = self.explain(nothing, [], lambda mu, log_variance: reparameterize(mu, log_variance, rng))
        return expected(output, self.settings.likelihood)

    def look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return what images ``(B, C, *S)`` say of z₁ and of the other levels; see :class:`Ladder`."""
        return self.network.look(pad(images, self.padded))

    def explain(self, change: Tensor, seen: Sequence[Tensor], draw: Draw) -> tuple[Tensor, list[Level]]:
        """Return the output ``(B, 1, *S)``, x̂ or its log-odds, and the levels; see :class:`Ladder`."""
        images, levels = self.network.explain(change, seen, draw)
        return crop(images, self.image_shape), levels

    def coarse(self, change: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """Return x̂_k ``(B, 1, *S)``."""
        output, _ = self.explain(change, seen[: self.settings.residual_levels - 1], mean)
        return expected(output, self.settings.likelihood)


def top_code(change: Tensor) -> Tensor:
    """Return the mean of z₁ ``(B, latents[0])`` of what the encoder says of it; its prior has mean 0."""
    code, _ = change.chunk(2, dim=1)
    return code


def mean(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return μ: what evidence is taken at."""
    del log_variance
    return mu


def _kept(drawn: list[Tensor], rng: torch.Generator) -> Draw:
    """Return a way to draw every level at random that adds what it draws to a list."""

    def draw(mu: Tensor, log_variance: Tensor) -> Tensor:
        drawn.append(reparameterize(mu, log_variance, rng))
        return drawn[-1]

    return draw
