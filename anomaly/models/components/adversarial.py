"""Adversarial models: networks, losses and the base detector. A building block, not a family.

A generator G makes images from codes z ~ N(0, 1). A critic D maps an image to a number; larger means more real. D
is trained on real images x and generated ones, G is trained against D:

    objective        D minimises                                            G minimises
    wgan-gp          E D(G(z)) − E D(x) + λ E (‖∇D(x̃)‖₂ − 1)²                −E D(G(z))
    non-saturating   −E log σ(D(x)) − E log(1 − σ(D(G(z))))                  −E log σ(D(G(z)))
    minimax          as non-saturating                                       E log(1 − σ(D(G(z))))

with x̃ = u x + (1 − u) G(z), u ~ U(0, 1), and the gradient ∇ with respect to x̃. With wgan-gp, D is approximately
1-Lipschitz, and its gap E D(x) − E D(G(z)) estimates the distance between the distributions of real and generated
images.

Source: Goodfellow et al. 2014, "Generative Adversarial Nets" (minimax, non-saturating); Radford, Metz & Chintala
2016, "Unsupervised Representation Learning with Deep Convolutional GANs" (the networks); Gulrajani et al. 2017,
"Improved Training of Wasserstein GANs" (wgan-gp); Miyato et al. 2018, "Spectral Normalization for GANs"; Mirza &
Osindero 2014, "Conditional Generative Adversarial Nets"; Miyato & Koyama 2018, "cGANs with Projection
Discriminator".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from monai.networks.blocks import Convolution, SubpixelUpsample, UpSample
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from anomaly.core.covariates import Covariate
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import NORM_GROUPS, Diagnostics, crop, pad, padded_shape
from anomaly.models.components.conditioning import Conditioning, condition_dropout
from anomaly.models.components.conv_autoencoder import BottleneckDetector, LatentSettings
from anomaly.models.components.ema import ema_update
from anomaly.models.components.gan_diagnostics import Objective, gan_diagnostics
from anomaly.models.components.variational import DiagonalGaussian

Decay = Annotated[float, Field(ge=0, lt=1)]

GENERATOR_EMA_DECAY = 0.99
CONDITION_DROPOUT = 0.1  # probability in training that a covariate is replaced by unknown


class AdversarialSettings(LatentSettings):
    """Settings of every family with a generator and a critic."""

    latent_size: int = Field(128, ge=2, description="length of the code z")
    objective: Objective = Field("wgan-gp", description="adversarial objective of generator and critic")
    penalty: float = Field(10.0, ge=0, description="λ: weight of the gradient penalty of wgan-gp")
    spectral_norm: bool = Field(
        False,
        description="divide the critic's weights by their largest singular value; no layer is normalised",
    )
    critic_steps: int = Field(1, ge=1, description="steps of the critic per step of the generator")
    betas: tuple[Decay, Decay] = Field(
        (0.0, 0.9), description="decay of the moments of AdamW; adversarial training needs small values"
    )


class AdversarialDetector(BottleneckDetector):
    """A detector with a critic, which is trained in alternation with the other networks."""

    settings: AdversarialSettings

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the two moments of AdamW."""
        return self.settings.betas

    @property
    def compiles(self) -> bool:
        """Whether torch can compile the networks: it cannot compile the double backward of a gradient penalty."""
        return self.settings.objective != "wgan-gp"

    def critic_losses(
        self, critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the loss of a critic on real and generated images ``(B, C, *S)``, its parts, and the gap."""
        settings = self.settings
        real_output, fake_output = critic(real), critic(fake)
        losses = {"critic": critic_loss(settings.objective, real_output, fake_output)}
        if settings.objective == "wgan-gp":
            losses["penalty"] = settings.penalty * gradient_penalty(critic, real, fake, rng)
        gap = real_output.mean() - fake_output.mean()
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, "gap": gap}

    def gan_diagnostics(
        self,
        batches: Iterator[tuple[Tensor, Tensor, Tensor]],
        generate: Callable[[Tensor], Tensor],
        critic: Callable[[Tensor, Tensor], Tensor],
    ) -> Diagnostics:
        """Return signs of mode collapse and of an unbalanced critic; see :func:`gan_diagnostics`."""
        return gan_diagnostics(batches, generate, critic, self.settings.objective)


class ImageGenerator(nn.Module):
    """Convolutions and upsampling from a code to images ``(B, C, *S)`` in the range of healthy intensities.

    The last layer gives, for every voxel, the logit m that it is tissue and the position t of its intensity in the
    range [a, b], so that the background can be 0 for any range: x = σ(m) · (a + (b − a) · σ(t)).

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
        group = ("group", {"num_groups": NORM_GROUPS})
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
        C, the channels of the stages, and the number of outputs.
    shape
        S.
    spectral
        Use spectral normalisation instead of layer normalisation (Ba, Kiros & Hinton 2016). Batch normalisation is
        unsuitable, because with it the gradient penalty of an image would depend on other images.
    condition_size
        Length of the condition c of a conditional critic. Its output gains the projection f(x) · V c of the
        features f (Miyato & Koyama 2018).
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        out: int,
        shape: tuple[int, ...],
        spectral: bool = False,
        condition_size: int = 0,
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
        # V of the projection.
        self.projection = nn.Linear(condition_size, features, bias=False) if condition_size else None
        if spectral:
            for layer in list(self.modules()):
                if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                    spectral_norm(layer)

    def features(self, images: Tensor) -> Tensor:
        """Return the features of the last stage ``(B, F)``."""
        features: Tensor = self.stages(pad(images, self.padded)).flatten(1)
        return features

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the outputs ``(B, out)`` of images with the condition c ``(B, condition_size)``."""
        features = self.features(images)
        output: Tensor = self.head(features)
        if self.projection is not None:
            output = output + (self.projection(condition) * features).sum(dim=1, keepdim=True)
        return output.float()


class GaussianEncoder(ImageCritic):
    """Strided convolutions from images to the posterior q(z|x) = N(μ, σ²) of their codes."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], latent: int, shape: tuple[int, ...]) -> None:
        super().__init__(in_channels, channels, 2 * latent, shape)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Return q(z|x) of images ``(B, C, *S)``."""
        mu, log_variance = self(images).chunk(2, dim=1)
        return DiagonalGaussian(mu, log_variance.clamp(-12, 12))


class ConditionalGAN(nn.Module):
    """Generator, its moving average and critic, with or without a condition c on the covariates of the subject.

    Attributes
    ----------
    conditioning
        Computes c from covariates; None for an unconditional GAN.
    ema_generator
        Ḡ, the exponential moving average of the generator.
    """

    def __init__(
        self, settings: AdversarialSettings, shape: tuple[int, ...], covariates: Sequence[Covariate] | None
    ) -> None:
        super().__init__()
        channels, image_channels = settings.channels, settings.view.channels
        self.conditioning = None if covariates is None else Conditioning(covariates)
        self.condition_size = 0 if self.conditioning is None else self.conditioning.size
        self.generator = ImageGenerator(settings.latent_size + self.condition_size, channels, image_channels, shape)
        self.ema_generator = copy.deepcopy(self.generator)
        self.critic = ImageCritic(image_channels, channels, 1, shape, settings.spectral_norm, self.condition_size)

    def fit_statistics(self, train: VolumeSource) -> None:
        """Learn the range of healthy intensities and, for a conditional GAN, the statistics of covariates."""
        for generator in (self.generator, self.ema_generator):
            generator.learn_range(train)
        if self.conditioning is not None:
            self.conditioning.fit(train)

    def condition(self, covariates: Tensor) -> Tensor:
        """Return c of covariates ``(B, D)``; ``(B, 0)`` for an unconditional GAN."""
        return covariates[:, :0] if self.conditioning is None else self.conditioning(covariates)

    def unknown_covariates(self, like: Tensor) -> Tensor:
        """Return covariates ``(B, D)`` of unknown subjects, one for each image or code of ``like``."""
        return like.new_empty((len(like), 0)) if self.conditioning is None else self.conditioning.unknown(len(like))

    def training_covariates(self, images: Tensor, covariates: Tensor | None, rng: torch.Generator) -> Tensor:
        """Return the covariates ``(B, D)`` for a training step, with condition dropout."""
        known = self.unknown_covariates(images) if covariates is None else covariates
        return condition_dropout(known, CONDITION_DROPOUT, rng)

    def forward_generator(self, z: Tensor, covariates: Tensor) -> Tensor:
        """Return G(z, c) ``(B, C, *S)``."""
        images: Tensor = self.generator(concat_condition(z, self.condition(covariates)))
        return images

    def forward_ema(self, z: Tensor, covariates: Tensor) -> Tensor:
        """Return Ḡ(z, c) ``(B, C, *S)``."""
        return self.forward_ema_condition(z, self.condition(covariates))

    def forward_ema_condition(self, z: Tensor, condition: Tensor) -> Tensor:
        """Return Ḡ(z, c) ``(B, C, *S)`` for c itself."""
        images: Tensor = self.ema_generator(concat_condition(z, condition))
        return images

    def forward_critic(self, images: Tensor, covariates: Tensor) -> Tensor:
        """Return D(x, c) ``(B,)``."""
        output: Tensor = self.critic(images, self.condition(covariates)).squeeze(1)
        return output

    def update_ema(self, step: int) -> None:
        """Update Ḡ towards G."""
        ema_update(self.ema_generator, self.generator, GENERATOR_EMA_DECAY, step)


def concat_condition(values: Tensor, condition: Tensor) -> Tensor:
    """Concatenate codes or images ``(B, C, …)`` and c ``(B, condition_size)``, as constant channels of images."""
    constant = condition.reshape(*condition.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return torch.cat([values, constant], dim=1) if condition.shape[1] else values


def coarse_shape(shape: tuple[int, ...], halvings: int) -> tuple[int, ...]:
    """Return the spatial shape of the coarsest stage."""
    return tuple(n // 2**halvings for n in padded_shape(shape, 2**halvings))


def critic_loss(objective: Objective, real: Tensor, fake: Tensor) -> Tensor:
    """Return the loss of the critic without the penalty, from its outputs for real and generated images."""
    if objective == "wgan-gp":
        return fake.mean() - real.mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()  # −log σ(d) = softplus(−d)


def generator_loss(objective: Objective, fake: Tensor) -> Tensor:
    """Return the loss of the generator, from the outputs of the critic for its images."""
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
    """Return E (‖∇D(x̃)‖₂ − 1)² (Gulrajani et al. 2017, eq. 3), in float32 for any training precision."""
    with torch.autocast(real.device.type, enabled=False):
        u = torch.rand((len(real), *[1] * (real.ndim - 1)), generator=rng, device=real.device)
        interpolated = torch.lerp(fake.float(), real.float(), u).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(interpolated).sum(), interpolated, create_graph=True)
        return ((gradient.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square().mean()


def feature_distance(features: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared difference of the critic features of each image ``(B,)``."""
    return (features.float() - others.float()).square().mean(dim=1)
