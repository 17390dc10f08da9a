"""f-AnoGAN: what a generator of healthy images cannot reproduce in a scan is anomalous.

Idea. A generator G and a critic D are trained against each other until G maps random codes z ~ N(0, 1) to healthy
images and to nothing else. Both are then frozen, and an encoder E learns to find the code of an image in one pass:

    phase 1   D and G alternate, k steps of D per step of G                       the objectives of ``adversarial``
              Ḡ is the exponential moving average of G and replaces it            G itself oscillates
    phase 2   L = ‖x − Ḡ(E(x))‖² / n + κ ‖f(x) − f(Ḡ(E(x)))‖² / n_f               izi_f, f the features of D
    evidence  r = x − Ḡ(E(x));    critic_features = ‖f(x) − f(Ḡ(E(x)))‖² / n_f

n is the number of voxels and n_f that of features. All codes are scaled to norm √d, which nearly all samples of
N(0, 1) have in d dimensions, so that E cannot return codes unlike those that G was trained on.

Conditional: G, D and E also get the condition c on age and sex, or on the other ``covariates`` of the volumes, so
that normal means normal for this age: G(z, c), E(x, c), and D(x, c) = D(x) + f(x) · V c, which scores how well
image and condition match. In training, covariates are dropped at random, so that they may be unknown later.

Source: Schlegl, Seeböck, Waldstein, Langs & Schmidt-Erfurth 2019, "f-AnoGAN: Fast unsupervised anomaly detection
with generative adversarial networks"; Mirza & Osindero 2014, "Conditional Generative Adversarial Nets"; Miyato &
Koyama 2018, "cGANs with Projection Discriminator" (V).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.covariates import AGE_AND_SEX, Covariates
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import Diagnostics, Evidence, ModelSettings, StepInfo, apply_mask, residual, target_slice
from anomaly.models.components.adversarial import (
    AdversarialDetector,
    AdversarialSettings,
    ConditionalGAN,
    ImageCritic,
    concat_condition,
    feature_distance,
    generator_loss,
)

ENCODER_WARMUP = 0.2  # share of the steps of the encoder before it is validated

Phase = Literal["critic", "generator", "encoder"]


class FAnoGANSettings(AdversarialSettings):
    """Settings of f-AnoGAN."""

    family: Literal["f_anogan"] = "f_anogan"
    encoder_share: float = Field(0.4, gt=0, lt=1, description="last share of the training, for the encoder E")
    feature_weight: float = Field(1.0, ge=0, description="κ: weight of the critic features in the loss of E")
    conditional: bool = Field(
        False, description="condition generator, critic and encoder on the covariates, where known"
    )
    covariates: Covariates = Field(
        AGE_AND_SEX, description="the covariates of the condition; values 0: a number, n: one of 0 to n − 1"
    )


class GANNetworks(ConditionalGAN):
    """A GAN and the encoder that inverts its generator."""

    def __init__(self, settings: FAnoGANSettings, shape: tuple[int, ...]) -> None:
        super().__init__(settings, shape, settings.covariates if settings.conditional else None)
        in_channels = settings.view.channels + self.condition_size
        self.encoder = ImageCritic(in_channels, settings.channels, settings.latent_size, shape)

    def encode(self, images: Tensor, covariates: Tensor) -> Tensor:
        """Return E(x, c) ``(B, latent)``."""
        return on_sphere(self.encoder(concat_condition(images, self.condition(covariates))))


class FAnoGAN(AdversarialDetector):
    """Residual and critic-feature distance of f-AnoGAN.

    Attributes
    ----------
    last_ema_step
        The step of the last update of Ḡ, so that a step with several accumulated batches updates it once. It is not
        saved, because a resumed training starts at the beginning of a step.
    """

    family = "f_anogan"
    Settings: ClassVar[type[ModelSettings]] = FAnoGANSettings
    settings: FAnoGANSettings
    network: GANNetworks

    def build(self) -> nn.Module:
        """Return generator, critic and encoder."""
        self.last_ema_step = 0
        return GANNetworks(self.settings, self.image_shape)

    @property
    def is_conditional(self) -> bool:
        """Whether the settings ask for a conditional GAN."""
        return self.settings.conditional

    def prepare(self, train: VolumeSource) -> None:
        """Learn the range of healthy intensities and, for a conditional GAN, the statistics of covariates."""
        self.network.fit_statistics(train)

    def n_parameters(self) -> int:
        """Return the number of trainable parameters, without those of Ḡ."""
        return super().n_parameters() - sum(
            p.numel() for p in self.network.ema_generator.parameters() if p.requires_grad
        )

    def phase(self, step: int, steps: int) -> Phase:
        """Return which network is trained in a step."""
        if step >= self.first_encoder_step(steps):
            return "encoder"
        critic_steps = self.settings.critic_steps
        return "generator" if step % (critic_steps + 1) == critic_steps else "critic"

    def first_encoder_step(self, steps: int) -> int:
        """Return the first step in which the encoder is trained."""
        return round(steps * (1 - self.settings.encoder_share))

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the network that is trained in a step."""
        part: nn.Module = getattr(self.network, self.phase(step, steps))
        return part

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether the encoder has been trained for a while."""
        start = self.first_encoder_step(steps)
        return step == steps or step >= start + ENCODER_WARMUP * (steps - start)

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the loss of the network that is trained in this step."""
        del mask, corrupted
        covariates = self.network.training_covariates(images, step_info.covariates, step_info.rng)
        if step_info.step > self.last_ema_step and self.phase(step_info.step - 1, step_info.steps) == "generator":
            self.network.update_ema(step_info.step)
            self.last_ema_step = step_info.step
        match self.phase(step_info.step, step_info.steps):
            case "critic":
                return self.critic_loss(images, covariates, step_info.rng)
            case "generator":
                return self.generator_loss(covariates, step_info.rng)
            case "encoder":
                return self.encoder_loss(images, covariates)

    def critic_loss(self, images: Tensor, covariates: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of D, and its gap E D(x) − E D(G(z))."""
        network = self.network
        with torch.no_grad():
            fake = network.forward_generator(self.random_codes(len(images), rng), covariates)
        return self.critic_losses(lambda x: network.forward_critic(x, covariates), images, fake, rng)

    def generator_loss(self, covariates: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of G."""
        fake = self.network.forward_generator(self.random_codes(len(covariates), rng), covariates)
        loss = generator_loss(self.settings.objective, self.network.forward_critic(fake, covariates))
        return {"loss": loss, "generator": loss}

    def encoder_loss(self, images: Tensor, covariates: Tensor) -> dict[str, Tensor]:
        """Return izi_f: the difference between Ḡ(E(x)) and x, in voxels and in critic features."""
        network = self.network
        reconstruction = network.forward_ema(network.encode(images, covariates), covariates)
        error = (images - reconstruction).square().mean()
        with torch.no_grad():
            features = network.critic.features(images)
        distance = feature_distance(features, network.critic.features(reconstruction)).mean()
        return {"loss": error + self.settings.feature_weight * distance, "error": error, "features": distance}

    def random_codes(self, n: int, rng: torch.Generator) -> Tensor:
        """Return n random codes z ``(n, latent)``."""
        return on_sphere(torch.randn((n, self.settings.latent_size), generator=rng, device=rng.device))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return Ḡ(E(x)) for unknown subjects."""
        del mask
        covariates = self.network.unknown_covariates(images)
        return target_slice(self.network.forward_ema(self.network.encode(images, covariates), covariates))

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the residual and the critic-feature distance; see the module's docstring."""
        network = self.network
        covariates = network.unknown_covariates(images) if covariates is None else covariates
        z = network.encode(images, covariates)
        reconstruction = network.forward_ema(z, covariates)
        distance = feature_distance(network.critic.features(images), network.critic.features(reconstruction))
        maps = {"residual": residual(images, target_slice(reconstruction), mask)}
        embedding = z if network.conditioning is None else None  # embed() encodes without the condition
        terms = {"critic_features": distance}
        return Evidence(maps, apply_mask(target_slice(reconstruction), mask), terms, embedding)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return E(x) ``(B, latent)`` for unknown subjects."""
        del mask
        return self.network.encode(images, self.network.unknown_covariates(images))

    def decode(self, z: Tensor) -> Tensor:
        """Return Ḡ(z) ``(B, C, *S)`` of codes ``(B, latent)``, which are scaled to norm √d."""
        return self.network.forward_ema(on_sphere(z), self.network.unknown_covariates(z))

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return ``n`` new images ``(n, C, *S)`` of subjects with covariates ``(n, D)``, unknown by default."""
        z = self.random_codes(n, rng)
        return self.network.forward_ema(z, self.network.unknown_covariates(z) if covariates is None else covariates)

    def interpolate(
        self, first: Tensor, second: Tensor, weight: float, covariates: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return images between ``first`` (weight 0) and ``second`` (weight 1); code and c are interpolated."""
        network, unknown = self.network, self.network.unknown_covariates(first)
        start, end = (unknown, unknown) if covariates is None else covariates
        z = torch.lerp(network.encode(first, start), network.encode(second, end), weight)
        condition = torch.lerp(network.condition(start), network.condition(end), weight)
        return network.forward_ema_condition(on_sphere(z), condition)

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return signs of mode collapse of Ḡ and of an unbalanced critic."""
        rng = torch.Generator(self.network.generator.lowest.device).manual_seed(0)
        return self.gan_diagnostics(
            batches,
            lambda covariates: self.sample(len(covariates), rng, covariates),
            self.network.forward_critic,
        )


def on_sphere(codes: Tensor) -> Tensor:
    """Return codes ``(B, d)`` scaled to norm √d."""
    return math.sqrt(codes.shape[1]) * F.normalize(codes, dim=1)
