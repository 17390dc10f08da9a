"""What adversarial models share: the players, their objectives, and whether the game goes well. A building block.

A generator G makes images from codes z ~ N(0, 1); a critic D gives an image a number, larger = more real. D learns
from real images x and generated ones, G learns from D:

    objective        D minimises                                            G minimises
    wgan-gp          E D(G(z)) − E D(x) + λ E (‖∇D(x̃)‖₂ − 1)²                −E D(G(z))
    non-saturating   −E log σ(D(x)) − E log(1 − σ(D(G(z))))                  −E log σ(D(G(z)))
    minimax          as non-saturating                                       E log(1 − σ(D(G(z))))

with x̃ = u x + (1 − u) G(z), u ~ U(0, 1), the gradient ∇ with respect to x̃. With wgan-gp D is nearly 1-Lipschitz,
and its gap E D(x) − E D(G(z)) measures how far generated images are from real ones.

Source: Goodfellow et al. 2014, "Generative Adversarial Nets" (minimax, non-saturating); Radford, Metz & Chintala
2016, "Unsupervised Representation Learning with Deep Convolutional GANs" (the networks); Gulrajani et al. 2017,
"Improved Training of Wasserstein GANs" (wgan-gp); Miyato et al. 2018, "Spectral Normalization for GANs"; Miyato &
Koyama 2018, "cGANs with Projection Discriminator".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.networks.blocks import Convolution, SubpixelUpsample, UpSample
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from anomaly.core.image_views import VolumeSource
from anomaly.evaluation.generation import Variety, variety
from anomaly.models.base import Diagnostics
from anomaly.models.components.conv_autoencoder import BottleneckDetector, LatentSettings
from anomaly.models.components.network import GROUPS, crop, pad, padded_shape

DECAY = 0.99  # of a generator's running mean
Objective = Literal["wgan-gp", "non-saturating", "minimax"]
Decay = Annotated[float, Field(ge=0, lt=1)]

COMPARED = 256  # real and generated images, to see how the game goes
BATCHES = 32  # at most, where they are few large images
SMALL = 16  # voxels along each axis of the small images that are compared
FEW_KINDS = 0.1  # coverage: kinds of real images that are made at all
FEW_DISTINCT = 0.5
LIFELIKE = 0.5  # density: most images are like some real ones
VANISHED = 1e-3  # a gap of the critic, as a share of the distance between real and generated images
EXPLODED = 3.0
CERTAIN = 30.0  # a gap of log-odds


class AdversarialSettings(LatentSettings):
    """Settings of every family with a generator and a critic."""

    latent_size: int = Field(128, ge=2, description="length of the code z")
    objective: Objective = Field("wgan-gp", description="what generator and critic minimise")
    penalty: float = Field(10.0, ge=0, description="λ: weight of the gradient penalty of wgan-gp")
    spectral_norm: bool = Field(
        False,
        description="divide the critic's weights by their largest singular value; no layer is normalised",
    )
    critic_steps: int = Field(1, ge=1, description="steps of the critic to every step of the generator")
    betas: tuple[Decay, Decay] = Field((0.0, 0.9), description="decay of the moments of AdamW; games want little")


class AdversarialDetector(BottleneckDetector):
    """A detector whose players take turns."""

    settings: AdversarialSettings

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the two moments of AdamW."""
        return self.settings.betas

    @property
    def compiles(self) -> bool:
        """Whether there is no gradient penalty: torch compiles no gradient of a gradient."""
        return self.settings.objective != "wgan-gp"

    def lesson(
        self, judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return what a critic minimises, given images of both kinds ``(B, C, *S)``, its parts, and its gap."""
        settings = self.settings
        real_answers, fake_answers = judge(real), judge(fake)
        losses = {"critic": critic_loss(settings.objective, real_answers, fake_answers)}
        if settings.objective == "wgan-gp":
            losses["penalty"] = settings.penalty * gradient_penalty(judge, real, fake, rng)
        gap = real_answers.mean() - fake_answers.mean()
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, "gap": gap}


class ImageGenerator(nn.Module):
    """Convolutions at ever finer resolution, from a code to images ``(B, C, *S)`` of healthy intensities.

    The last layer says of every voxel how surely it is tissue (m) and where in the range [a, b] its intensity lies
    (t), so that background can be 0 whatever the range: x = σ(m) · (a + (b − a) · σ(t)).

    Attributes
    ----------
    lowest, highest
        a and b, scalars.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self, code: int, channels: tuple[int, ...], out_channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        dims, coarse = len(shape), coarse_shape(shape, len(channels))
        self.start = (channels[-1], *coarse)
        self.linear = nn.Linear(code, math.prod(self.start))
        layers: list[nn.Module] = []
        for before, after in pairwise(reversed(channels)):
            layers += [self._stage(before, after), UpSample(dims, mode="nontrainable", align_corners=False)]
        fine = SubpixelUpsample(dims, channels[0], 2 * out_channels)
        self.layers = nn.Sequential(*layers, self._stage(channels[0], channels[0]), fine)
        self.register_buffer("lowest", torch.tensor(0.0))
        self.register_buffer("highest", torch.tensor(1.0))

    def _stage(self, before: int, after: int) -> nn.Module:
        group = ("group", {"num_groups": GROUPS})
        stage: nn.Module = Convolution(len(self.shape), before, after, norm=group, act="leakyrelu")
        return stage

    def learn_range(self, train: VolumeSource) -> None:
        """Learn a and b from healthy volumes."""
        extremes = [(voxels.min(), voxels.max()) for voxels, _ in (train[n] for n in range(len(train)))]
        self.lowest.fill_(float(min(low for low, _ in extremes)))
        self.highest.fill_(float(max(high for _, high in extremes)))

    def forward(self, code: Tensor) -> Tensor:
        """Return images of codes ``(B, code)``."""
        output = self.layers(self.linear(code).reshape(-1, *self.start)).float()
        tissue, intensity = crop(output, self.shape).sigmoid().chunk(2, dim=1)
        return tissue * (self.lowest + (self.highest - self.lowest) * intensity)


class ImageCritic(nn.Module):
    """Strided convolutions from images ``(B, C, *S)`` to numbers ``(B, out)``: a critic, or an encoder.

    Parameters
    ----------
    in_channels, channels, out
        C, the channels of the stages, and how many numbers.
    shape
        S.
    spectral
        Whether spectral normalisation takes the place of layer normalisation (Ba, Kiros & Hinton 2016), which
        unlike that of batches keeps the gradient penalty of an image its own.
    told
        Length of c, what a critic is told beside the images. Its answer gains f(x) · V c, how well the two go
        together, f the features (Miyato & Koyama 2018).
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        out: int,
        shape: tuple[int, ...],
        spectral: bool = False,
        told: int = 0,
    ) -> None:
        super().__init__()
        coarse = coarse_shape(shape, len(channels))
        self.padded = tuple(n * 2 ** len(channels) for n in coarse)
        stages = [
            Convolution(
                len(shape), before, after, strides=2, act=("leakyrelu", {"negative_slope": 0.2}),
                norm=None if spectral or before == in_channels else ("group", {"num_groups": 1}),
            )
            for before, after in zip((in_channels, *channels), channels, strict=False)
        ]  # fmt: skip
        self.stages = nn.Sequential(*stages)
        features = channels[-1] * math.prod(coarse)
        self.head = nn.Linear(features, out)
        self.expected = nn.Linear(told, features, bias=False) if told else None
        if spectral:
            for layer in list(self.modules()):
                if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                    spectral_norm(layer)

    def features(self, images: Tensor) -> Tensor:
        """Return what the last stage sees in images, ``(B, F)``."""
        seen: Tensor = self.stages(pad(images, self.padded)).flatten(1)
        return seen

    def forward(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        """Return the numbers of images, of which c ``(B, told)`` is told."""
        seen = self.features(images)
        numbers: Tensor = self.head(seen)
        if self.expected is not None:
            numbers = numbers + (self.expected(told) * seen).sum(dim=1, keepdim=True)
        return numbers.float()


@torch.no_grad()
def follow(mean: nn.Module, current: nn.Module, step: int) -> None:
    """Move an exponential running mean of a player's weights, which swing about, towards the current ones.

    As of the weights in training, the decay rises with the steps (Karras et al. 2018, "Progressive Growing of
    GANs", section 6).
    """
    decay = min(DECAY, (1 + step) / (10 + step))
    for kept, weights in zip(mean.parameters(), current.parameters(), strict=True):
        kept.lerp_(weights, 1 - decay)


def coarse_shape(shape: tuple[int, ...], halvings: int) -> tuple[int, ...]:
    """Return the shape of the coarsest stage."""
    return tuple(n // 2**halvings for n in padded_shape(shape, 2**halvings))


def critic_loss(objective: Objective, real: Tensor, fake: Tensor) -> Tensor:
    """Return what the critic minimises, the penalty aside, of its answers to real and generated images."""
    if objective == "wgan-gp":
        return fake.mean() - real.mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()  # −log σ(d) = softplus(−d)


def generator_loss(objective: Objective, fake: Tensor) -> Tensor:
    """Return what the generator minimises of the critic's answers to its images."""
    match objective:
        case "wgan-gp":
            return -fake.mean()
        case "non-saturating":
            return F.softplus(-fake).mean()
        case "minimax":
            return -F.softplus(fake).mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator
) -> Tensor:
    """Return E (‖∇D(x̃)‖₂ − 1)² (Gulrajani et al. 2017, eq. 3), in float32 whatever the training's precision."""
    with torch.autocast(real.device.type, enabled=False):
        u = torch.rand((len(real), *[1] * (real.ndim - 1)), generator=rng, device=real.device)
        between = torch.lerp(fake.float(), real.float(), u).detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return ((slope.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square().mean()


def feature_distance(features: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared distance of the critic's features of each image ``(B,)``."""
    return (features.float() - others.float()).square().mean(dim=1)


@torch.no_grad()
def gan_diagnostics(
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    generate: Callable[[Tensor], Tensor],
    critic: Callable[[Tensor, Tensor], Tensor],
    objective: Objective,
) -> Diagnostics:
    """Return how varied a generator's images are, and how far the critic tells them from real ones.

    Parameters
    ----------
    batches
        Real images ``(B, C, *S)``, masks and covariates ``(B, D)``; as many are taken as are needed.
    generate
        Makes an image for each subject of covariates ``(B, D)``.
    critic
        Answers to images and covariates.
    objective
        What the two minimise.
    """
    real, fake, gaps, distances = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for images, _, covariates in batches:
        generated = generate(covariates)
        real.append(_small(images))
        fake.append(_small(generated))
        gaps.append(critic(images, covariates) - critic(generated, covariates))
        distances.append((images - generated).flatten(1).norm(dim=1))
        if len(real) == BATCHES or sum(map(len, real)) >= COMPARED:
            break
    found = variety(np.concatenate([t.cpu() for t in real]), np.concatenate([t.cpu() for t in fake]))
    gap, distance = float(torch.cat(gaps).mean()), float(torch.cat(distances).mean())
    numbers = {
        "coverage": found.coverage,
        "density": found.density,
        "distinct": found.distinct,
        "critic_gap": gap,
    }
    return Diagnostics(numbers, (*_collapse(found), *_imbalance(gap, distance, objective, found)))


def _small(images: Tensor) -> Tensor:
    size = [min(n, SMALL) for n in images.shape[2:]]
    return F.interpolate(images, size, mode="area").flatten(1)


def _collapse(found: Variety) -> Iterator[str]:
    """Say that the generator has collapsed, or that it has not learnt enough."""
    if found.distinct < FEW_DISTINCT or (found.coverage < FEW_KINDS and found.density > LIFELIKE):
        yield (
            f"the generator repeats itself (mode collapse): coverage {found.coverage:.2f} (expected {FEW_KINDS} or "
            f"more), and {found.distinct:.2f} of its images are distinct (expected {FEW_DISTINCT} or more); lower "
            "training.learning_rate or raise model.critic_steps"
        )
    elif found.coverage < FEW_KINDS:
        yield (
            f"the generator does not make images like the real ones yet: coverage {found.coverage:.2f} (expected "
            f"{FEW_KINDS} or more); where this stays so, raise training.steps or model.channels"
        )


def _imbalance(gap: float, distance: float, objective: Objective, found: Variety) -> Iterator[str]:
    """Say that the critic no longer teaches. A 1-Lipschitz critic's gap is at most the distance of the images."""
    largest = EXPLODED * distance if objective == "wgan-gp" else CERTAIN
    if not math.isfinite(gap) or gap > largest:
        yield (
            f"the critic has left its bounds: its gap between real and generated images is {gap:.3g} (expected at "
            f"most {largest:.3g}); raise model.penalty or set model.spectral_norm to true, or lower "
            "training.learning_rate"
        )
    elif abs(gap) < VANISHED * (distance if objective == "wgan-gp" else 1.0) and found.coverage < 5 * FEW_KINDS:
        yield (
            f"the critic no longer tells real from generated images (gap {gap:.2g}) though they differ (coverage "
            f"{found.coverage:.2f}); raise model.critic_steps, or lower model.penalty"
        )
