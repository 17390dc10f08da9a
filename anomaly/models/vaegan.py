"""VAE-GAN: a variational autoencoder whose images a critic compares, so that they need not be blurred.

Idea. An error counted voxel by voxel is least where an unsure decoder blurs. A critic D, which learns to tell real
images from decoded ones, sees edges and texture; what it sees of an image, f(x), is therefore rebuilt too, and what
is decoded must look real to it. Encoder E gives q(z|x) = N(μ, σ²), decoder G the image:

    likelihood   −log p = ½ ‖f(x) − f(x̂)‖² + w · ½ Σ ((x − x̂)/s)²             nats; x̂ = G(z), z = μ + σ·ε
    E and G      L = (−log p + β·KL) / N + α · (what a generator minimises)   N voxels inside the mask
    D            as in ``adversarial``: half of the decoded images are rebuilt from z, half made of ε ~ N(0, 1)

The last term of L teaches G alone: E is there to rebuild, not to please D (Larsen et al., section 2.3; α is 1/γ of
the paper, and w = 0 its likelihood). D and the pair (E, G) take turns.

Evidence: the residual x − x̂ at z = μ; per image the KL, and critic_features = ‖f(x) − f(x̂)‖² / n_f.

Source: Larsen, Sønderby, Larochelle & Winther 2016, "Autoencoding beyond pixels using a learned similarity metric".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anomaly.core.image_views import VolumeSource
from anomaly.models.base import Diagnostics, Evidence, ModelSettings, StepInfo
from anomaly.models.components.adversarial import (
    AdversarialDetector,
    AdversarialSettings,
    ImageCritic,
    ImageGenerator,
    feature_distance,
    gan_diagnostics,
    generator_loss,
)
from anomaly.models.components.network import apply_mask, residual, target_slice
from anomaly.models.components.variational import beta_at, kl, reparameterize


class VAEGANSettings(AdversarialSettings):
    """Settings of the VAE-GAN."""

    family: Literal["vaegan"] = "vaegan"
    beta: float = Field(1.0, ge=0, description="weight of the KL")
    beta_warmup: float = Field(0.2, ge=0, le=1, description="share of the training over which β rises from 0")
    noise_sd: float = Field(0.1, gt=0, description="s: SD of the likelihood of voxels, intensity units")
    voxel_weight: float = Field(1.0, ge=0, description="w: weight of the likelihood of voxels beside features")
    adversarial_weight: float = Field(0.1, ge=0, description="α: how much the decoder minds what the critic says")


class Autoencoder(nn.Module):
    """Encoder and decoder, which learn together."""

    def __init__(self, encoder: ImageCritic, decoder: ImageGenerator) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


class GANNetworks(nn.Module):
    """Autoencoder and critic."""

    def __init__(self, settings: VAEGANSettings, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, latent, image_channels = settings.channels, settings.latent_size, settings.view.channels
        self.autoencoder = Autoencoder(
            ImageCritic(image_channels, channels, 2 * latent, shape),
            ImageGenerator(latent, channels, image_channels, shape),
        )
        self.critic = ImageCritic(image_channels, channels, 1, shape, settings.spectral_norm)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ², each ``(B, latent)``."""
        mu, log_variance = self.autoencoder.encoder(images).chunk(2, dim=1)
        return mu, log_variance.clamp(-12, 12)

    def decode(self, z: Tensor) -> Tensor:
        """Return images ``(B, C, *S)``."""
        images: Tensor = self.autoencoder.decoder(z)
        return images


class AdversarialVariational(AdversarialDetector):
    """Residual, KL and critic-feature distance of a VAE-GAN."""

    family = "vaegan"
    Settings: ClassVar[type[ModelSettings]] = VAEGANSettings
    settings: VAEGANSettings
    network: GANNetworks

    def build(self) -> nn.Module:
        """Return encoder, decoder and critic."""
        return GANNetworks(self.settings, self.image_shape)

    def prepare(self, train: VolumeSource) -> None:
        """Learn the range of healthy intensities."""
        self.network.autoencoder.decoder.learn_range(train)

    def critic_learns(self, step: int) -> bool:
        """Return whether it is the critic's turn."""
        return step % (self.settings.critic_steps + 1) < self.settings.critic_steps

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the critic, or encoder and decoder, whose turn it is."""
        del steps
        return self.network.critic if self.critic_learns(step) else self.network.autoencoder

    def loss(self, images: Tensor, mask: Tensor, at: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the loss of those whose turn it is."""
        del corrupted
        if self.critic_learns(at.step):
            return self.critic_loss(images, at.rng)
        return self.autoencoder_loss(images, mask, at)

    def critic_loss(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return what D minimises, and its gap between real and decoded images."""
        with torch.no_grad():
            z = reparameterize(*self.network.encode(images), rng)
            fake = self.network.decode(half_new(z, rng))
        return self.lesson(self.network.critic, images, fake, rng)

    def autoencoder_loss(self, images: Tensor, mask: Tensor, at: StepInfo) -> dict[str, Tensor]:
        """Return what E and G minimise, and its parts, per voxel inside the mask."""
        settings, players = self.settings, self.network
        voxels = mask.sum().clamp_min(1)
        mu, log_variance = players.encode(images)
        z = reparameterize(mu, log_variance, at.rng)
        rebuilt = players.decode(z)
        with torch.no_grad():
            seen = players.critic.features(images)
        features = 0.5 * (seen - players.critic.features(rebuilt)).float().square().sum() / voxels
        error = 0.5 * (mask * (images - rebuilt) / settings.noise_sd).square().sum() / voxels
        divergence = kl(mu, log_variance).sum() / voxels
        judged = players.critic(players.decode(half_new(z, at.rng)))
        pleasing = generator_loss(settings.objective, judged)
        beta = beta_at(settings.beta, settings.beta_warmup, at)
        loss = features + settings.voxel_weight * error + beta * divergence + settings.adversarial_weight * pleasing
        return {"loss": loss, "features": features, "error": error, "kl": divergence, "generator": pleasing}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the decoding of the mean code."""
        del mask
        return target_slice(self.network.decode(self.network.encode(images)[0]))

    def evidence(self, images: Tensor, mask: Tensor) -> Evidence:
        """Return the residual, the KL and the critic-feature distance at the mean code."""
        players = self.network
        mu, log_variance = players.encode(images)
        rebuilt = players.decode(mu)
        distance = feature_distance(players.critic.features(images), players.critic.features(rebuilt))
        maps = {"residual": residual(images, target_slice(rebuilt), mask)}
        terms = {"kl": kl(mu, log_variance), "critic_features": distance}
        return Evidence(maps, apply_mask(target_slice(rebuilt), mask), terms, embedding=mu)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean code μ ``(B, latent)``."""
        del mask
        return self.network.encode(images)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return D(z) ``(B, C, *S)`` of codes ``(B, latent)``."""
        return self.network.decode(z)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Return decodings of n codes z ~ N(0, 1), ``(n, C, *S)``."""
        return self.decode(torch.randn((n, self.settings.latent_size), generator=rng, device=rng.device))

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return how varied the decodings of new codes are, and how far D tells them from real images."""
        rng = torch.Generator(self.network.autoencoder.decoder.lowest.device).manual_seed(0)
        return gan_diagnostics(
            batches,
            lambda covariates: self.sample(len(covariates), rng),
            lambda images, _: self.network.critic(images),
            self.settings.objective,
        )


def half_new(z: Tensor, rng: torch.Generator) -> Tensor:
    """Return codes ``(B, latent)`` of which half are z, cut off from the encoder, and half are new, ~ N(0, 1)."""
    new = torch.randn(z.shape, generator=rng, device=z.device)
    half = len(z) // 2
    return torch.cat([z[:half].detach(), new[half:]])
