"""f-AnoGAN: what a generator of healthy images cannot make is not healthy.

Idea. A generator G and a critic D play against each other until G makes healthy images of random codes
z ~ N(0, 1), and can make nothing else. Then both stand still, and an encoder E learns to find the code of an image
in one pass:

    first     D and G take turns, k steps of D to one of G                        the objectives of ``adversarial``
              Ḡ, a running mean of G, takes its place after                       G itself swings about
    then      L = ‖x − Ḡ(E(x))‖² / n + κ ‖f(x) − f(Ḡ(E(x)))‖² / n_f               izi_f, f the features that D sees
    evidence  r = x − Ḡ(E(x));    critic_features = ‖f(x) − f(Ḡ(E(x)))‖² / n_f

n is the number of voxels and n_f that of features. All codes are scaled to the length √d that nearly all of N(0, 1)
has in d dimensions, so E cannot answer with a code of a kind that G has never been given.

Conditional: G, D and E are also told age and sex c, or whatever else the volumes come with (``covariates``), so
normal is what is normal at this age: G(z, c), E(x, c), and D(x, c) = D(x) + f(x) · V c, which asks whether image
and subject go together. In training each of c is withheld from some images so that it need not be known.

Source: Schlegl, Seeböck, Waldstein, Langs & Schmidt-Erfurth 2019, "f-AnoGAN: Fast unsupervised anomaly detection
with generative adversarial networks"; Mirza & Osindero 2014, "Conditional Generative Adversarial Nets"; Miyato &
Koyama 2018, "cGANs with Projection Discriminator" (V).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.covariates import AGE_AND_SEX, Covariates
from anomaly.core.image_views import VolumeSource
from anomaly.models.base import Diagnostics, Evidence, ModelSettings, StepInfo
from anomaly.models.components.adversarial import (
    AdversarialDetector,
    AdversarialSettings,
    ImageCritic,
    ImageGenerator,
    feature_distance,
    follow,
    gan_diagnostics,
    generator_loss,
)
from anomaly.models.components.conditioning import Conditioning, condition_dropout
from anomaly.models.components.network import apply_mask, residual, target_slice

WITHHELD = 0.1  # share of the covariates
BARELY_LEARNT = 0.2  # share of its steps after which an encoder can be validated

Turn = Literal["critic", "generator", "encoder"]


class GANSettings(AdversarialSettings):
    """Settings of f-AnoGAN."""

    family: Literal["f_anogan"] = "f_anogan"
    encoder_share: float = Field(0.4, gt=0, lt=1, description="last share of the training, in which E learns")
    feature_weight: float = Field(1.0, ge=0, description="κ: weight of the critic-feature residual in learning E")
    conditional: bool = Field(False, description="tell generator, critic and encoder the covariates, where known")
    covariates: Covariates = Field(
        AGE_AND_SEX, description="what they are told; values 0: a number, n: one of 0 to n − 1"
    )


class GANNetworks(nn.Module):
    """Generator and its running mean, critic, encoder, and what they are told of a subject, if anything."""

    def __init__(self, settings: GANSettings, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, latent, image_channels = settings.channels, settings.latent_size, settings.view.channels
        self.conditioning = Conditioning(settings.covariates) if settings.conditional else None
        told = 0 if self.conditioning is None else self.conditioning.size
        self.generator = ImageGenerator(latent + told, channels, image_channels, shape)
        self.steady = copy.deepcopy(self.generator)
        self.critic = ImageCritic(image_channels, channels, 1, shape, settings.spectral_norm, told)
        self.encoder = ImageCritic(image_channels + told, channels, latent, shape)

    def play(self, z: Tensor, covariates: Tensor) -> Tensor:
        """Return G(z, c) ``(B, C, *S)``."""
        images: Tensor = self.generator(beside(z, self.told(covariates)))
        return images

    def generate(self, z: Tensor, covariates: Tensor) -> Tensor:
        """Return Ḡ(z, c) ``(B, C, *S)``."""
        images: Tensor = self.steady(beside(z, self.told(covariates)))
        return images

    def judge(self, images: Tensor, covariates: Tensor) -> Tensor:
        """Return D(x, c) ``(B,)``."""
        answers: Tensor = self.critic(images, self.told(covariates)).squeeze(1)
        return answers

    def encode(self, images: Tensor, covariates: Tensor) -> Tensor:
        """Return E(x, c) ``(B, latent)``."""
        return on_sphere(self.encoder(beside(images, self.told(covariates))))

    def unknown(self, like: Tensor) -> Tensor:
        """Return covariates ``(B, D)`` of the unknown subjects of images or codes; none where nothing is told."""
        return like.new_empty((len(like), 0)) if self.conditioning is None else self.conditioning.unknown(len(like))

    def told(self, covariates: Tensor) -> Tensor:
        """Return c of covariates ``(B, D)``; ``(B, 0)`` where nothing is told."""
        return covariates[:, :0] if self.conditioning is None else self.conditioning(covariates)


def beside(values: Tensor, told: Tensor) -> Tensor:
    """Return codes or images ``(B, C, …)`` with c ``(B, told)`` as further numbers, or as even channels."""
    spread = told.reshape(*told.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return torch.cat([values, spread], dim=1) if told.shape[1] else values


class GenerativeAdversarial(AdversarialDetector):
    """Residual and critic-feature distance of f-AnoGAN.

    Attributes
    ----------
    followed
        The step at which Ḡ was last moved: once for each, however many batches a step adds up. A resumed training
        begins with a step, so it need not be kept.
    """

    family = "f_anogan"
    Settings: ClassVar[type[ModelSettings]] = GANSettings
    settings: GANSettings
    network: GANNetworks

    def build(self) -> nn.Module:
        """Return generator, critic and encoder."""
        self.followed = 0
        return GANNetworks(self.settings, self.image_shape)

    def prepare(self, train: VolumeSource) -> None:
        """Learn the range of healthy intensities and, where the model is conditional, of covariates."""
        for generator in (self.network.generator, self.network.steady):
            generator.learn_range(train)
        if self.network.conditioning is not None:
            self.network.conditioning.learn(train)

    def n_parameters(self) -> int:
        """Return the number of trainable parameters; Ḡ only follows."""
        return super().n_parameters() - sum(p.numel() for p in self.network.steady.parameters() if p.requires_grad)

    def turn(self, step: int, steps: int) -> Turn:
        """Return who learns in a step."""
        if step >= self.encoder_from(steps):
            return "encoder"
        critic_steps = self.settings.critic_steps
        return "generator" if step % (critic_steps + 1) == critic_steps else "critic"

    def encoder_from(self, steps: int) -> int:
        """Return the first step in which the encoder learns."""
        return round(steps * (1 - self.settings.encoder_share))

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the player whose turn it is."""
        part: nn.Module = getattr(self.network, self.turn(step, steps))
        return part

    def ready_to_validate(self, step: int, steps: int) -> bool:
        """Return whether the encoder has learnt a little."""
        start = self.encoder_from(steps)
        return step == steps or step >= start + BARELY_LEARNT * (steps - start)

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the loss of the player whose turn it is."""
        del mask, corrupted
        known = self.network.unknown(images) if at.covariates is None else at.covariates
        covariates = condition_dropout(known, WITHHELD, at.rng)
        if at.step > self.followed and self.turn(at.step - 1, at.steps) == "generator":
            follow(self.network.steady, self.network.generator, at.step)
            self.followed = at.step
        match self.turn(at.step, at.steps):
            case "critic":
                return self.critic_loss(images, covariates, at.rng)
            case "generator":
                return self.generator_loss(covariates, at.rng)
            case "encoder":
                return self.encoder_loss(images, covariates)

    def critic_loss(self, images: Tensor, covariates: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return what D minimises, and its gap E D(x) − E D(G(z))."""
        players = self.network
        with torch.no_grad():
            fake = players.play(self.codes(len(images), rng), covariates)
        return self.lesson(lambda x: players.judge(x, covariates), images, fake, rng)

    def generator_loss(self, covariates: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return what G minimises."""
        fake = self.network.play(self.codes(len(covariates), rng), covariates)
        loss = generator_loss(self.settings.objective, self.network.judge(fake, covariates))
        return {"loss": loss, "generator": loss}

    def encoder_loss(self, images: Tensor, covariates: Tensor) -> dict[str, Tensor]:
        """Return izi_f: how far Ḡ(E(x)) is from x, in voxels and in what the critic sees."""
        players = self.network
        rebuilt = players.generate(players.encode(images, covariates), covariates)
        error = (images - rebuilt).square().mean()
        with torch.no_grad():
            seen = players.critic.features(images)
        distance = feature_distance(seen, players.critic.features(rebuilt)).mean()
        return {"loss": error + self.settings.feature_weight * distance, "error": error, "features": distance}

    def codes(self, n: int, rng: torch.Generator) -> Tensor:
        """Return n random codes z."""
        return on_sphere(torch.randn((n, self.settings.latent_size), generator=rng, device=rng.device))

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return Ḡ(E(x)) for subjects of whom nothing is known."""
        del mask
        covariates = self.network.unknown(images)
        return target_slice(self.network.generate(self.network.encode(images, covariates), covariates))

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the evidence for subjects of whom nothing is known."""
        return self.evidence_given(images, mask, self.network.unknown(images))

    def evidence_given(self, images: Tensor, mask: Tensor, covariates: Tensor) -> Evidence:
        """Return the residual and the critic-feature distance; see the module's docstring."""
        players = self.network
        z = players.encode(images, covariates)
        rebuilt = players.generate(z, covariates)
        distance = feature_distance(players.critic.features(images), players.critic.features(rebuilt))
        maps = {"residual": residual(images, target_slice(rebuilt), mask)}
        embedding = z if players.conditioning is None else None  # embed() encodes without the condition
        terms = {"critic_features": distance}
        return Evidence(maps, apply_mask(target_slice(rebuilt), mask), terms, embedding)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return E(x) ``(B, latent)`` for subjects of whom nothing is known."""
        del mask
        return self.network.encode(images, self.network.unknown(images))

    def decode(self, z: Tensor) -> Tensor:
        """Return Ḡ(z) ``(B, C, *S)`` of codes ``(B, latent)``, scaled to the length of all codes."""
        return self.network.generate(on_sphere(z), self.network.unknown(z))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return n new images ``(n, C, *S)`` of subjects of whom nothing is known."""
        z = self.codes(n, rng)
        return self.network.generate(z, self.network.unknown(z))

    def sample_given(self, covariates: Tensor, rng: torch.Generator) -> Tensor:
        """Return a new image ``(n, C, *S)`` for each row of covariates ``(n, D)``; see ``ConditionalGenerator``."""
        return self.network.generate(self.codes(len(covariates), rng), covariates)

    def interpolate_given(
        self, first: Tensor, second: Tensor, about: tuple[Tensor, Tensor], weight: float
    ) -> Tensor:
        """Return the images between: code and c both go straight; see ``ConditionalInterpolator``."""
        players, (start, end) = self.network, about
        z = torch.lerp(players.encode(first, start), players.encode(second, end), weight)
        told = torch.lerp(players.told(start), players.told(end), weight)
        images: Tensor = players.steady(beside(on_sphere(z), told))
        return images

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return how varied Ḡ's images are, and how far D tells them from real ones."""
        rng = torch.Generator(self.network.generator.lowest.device).manual_seed(0)
        return gan_diagnostics(
            batches,
            lambda covariates: self.sample_given(covariates, rng),
            self.network.judge,
            self.settings.objective,
        )


def on_sphere(codes: Tensor) -> Tensor:
    """Return codes ``(B, d)`` scaled to the length √d."""
    return math.sqrt(codes.shape[1]) * F.normalize(codes, dim=1)
