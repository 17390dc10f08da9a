"""VAE-GAN: a variational autoencoder with a reconstruction loss on critic features, which avoids blur.

Idea. A voxelwise error is smallest when an uncertain decoder blurs. The features f(x) of a critic D, which is
trained to distinguish real images from decoded ones, capture edges and texture. The loss therefore compares
features as well, and decoded images must look real to D. The encoder E gives q(z|x) = N(μ, σ²), the decoder G gives
the image:

    likelihood   −log p = ½ ‖f(x) − f(x̂)‖² + w · ½ Σ ((x − x̂)/s)²             nats; x̂ = G(z), z = μ + σ·ε
    E and G      L = (−log p + β·KL) / N + α · (loss of a generator)          N voxels inside the mask
    D            as in ``adversarial``; of the decoded images, half have codes z and half codes ε ~ N(0, 1)

The gradient of the last term of L reaches G only, because E should reconstruct and not deceive D (Larsen et al.,
section 2.3; α is 1/γ of the paper, and w = 0 its likelihood). D and the pair (E, G) are trained in alternation.

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
from anomaly.models.base import Diagnostics, Evidence, ModelSettings, StepInfo, apply_mask, residual, target_slice
from anomaly.models.components.adversarial import (
    AdversarialDetector,
    AdversarialSettings,
    GaussianEncoder,
    ImageCritic,
    ImageGenerator,
    feature_distance,
    generator_loss,
)


class VAEGANSettings(AdversarialSettings):
    """Settings of the VAE-GAN."""

    family: Literal["vaegan"] = "vaegan"
    beta: float = Field(1.0, ge=0, description="weight of the KL")
    beta_warmup: float = Field(0.2, ge=0, le=1, description="share of the training over which β rises from 0")
    noise_sd: float = Field(0.1, gt=0, description="s: SD of the likelihood of voxels, intensity units")
    voxel_weight: float = Field(1.0, ge=0, description="w: weight of the voxel term of the likelihood")
    adversarial_weight: float = Field(0.1, ge=0, description="α: weight of the adversarial loss of the decoder")


class Autoencoder(nn.Module):
    """Encoder and decoder, which are trained together."""

    def __init__(self, encoder: GaussianEncoder, decoder: ImageGenerator) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


class GANNetworks(nn.Module):
    """Autoencoder and critic."""

    def __init__(self, settings: VAEGANSettings, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, latent, image_channels = settings.channels, settings.latent_size, settings.view.channels
        self.autoencoder = Autoencoder(
            GaussianEncoder(image_channels, channels, latent, shape),
            ImageGenerator(latent, channels, image_channels, shape),
        )
        self.critic = ImageCritic(image_channels, channels, 1, shape, settings.spectral_norm)

    @property
    def encoder(self) -> GaussianEncoder:
        """The encoder q(z|x)."""
        return self.autoencoder.encoder

    def decode(self, z: Tensor) -> Tensor:
        """Return images ``(B, C, *S)``."""
        images: Tensor = self.autoencoder.decoder(z)
        return images


class VAEGAN(AdversarialDetector):
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

    def is_critic_step(self, step: int) -> bool:
        """Return whether the critic is trained in a step."""
        return step % (self.settings.critic_steps + 1) < self.settings.critic_steps

    def trainable_part(self, step: int, steps: int) -> nn.Module:
        """Return the critic, or encoder and decoder."""
        del steps
        return self.network.critic if self.is_critic_step(step) else self.network.autoencoder

    def loss(self, images: Tensor, mask: Tensor, step_info: StepInfo, *corrupted: Tensor) -> dict[str, Tensor]:
        """Return the loss of the part that is trained in this step."""
        del corrupted
        if self.is_critic_step(step_info.step):
            return self.critic_loss(images, step_info.rng)
        return self.autoencoder_loss(images, mask, step_info)

    def critic_loss(self, images: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of D, and its gap between real and decoded images."""
        with torch.no_grad():
            z = self.network.encoder.encode(images).sample(rng)
            fake = self.network.decode(replace_half(z, rng))
        return self.critic_losses(self.network.critic, images, fake, rng)

    def autoencoder_loss(self, images: Tensor, mask: Tensor, step_info: StepInfo) -> dict[str, Tensor]:
        """Return the loss of E and G, and its parts, per voxel inside the mask."""
        settings, network = self.settings, self.network
        voxels = mask.sum().clamp_min(1)
        posterior = network.encoder.encode(images)
        z = posterior.sample(step_info.rng)
        reconstruction = network.decode(z)
        with torch.no_grad():
            target = network.critic.features(images)
        features = 0.5 * (target - network.critic.features(reconstruction)).float().square().sum() / voxels
        error = 0.5 * (mask * (images - reconstruction) / settings.noise_sd).square().sum() / voxels
        divergence = posterior.kl().sum() / voxels
        critic_output = network.critic(network.decode(replace_half(z, step_info.rng)))
        adversarial = generator_loss(settings.objective, critic_output)
        beta = step_info.linear_warmup(settings.beta, settings.beta_warmup)
        elbo_terms = features + settings.voxel_weight * error + beta * divergence
        loss = elbo_terms + settings.adversarial_weight * adversarial
        return {"loss": loss, "features": features, "error": error, "kl": divergence, "generator": adversarial}

    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the decoding of the mean code."""
        del mask
        return target_slice(self.network.decode(self.network.encoder.encode(images).mu))

    def evidence(self, images: Tensor, mask: Tensor, covariates: Tensor | None = None) -> Evidence:
        """Return the residual, the KL and the critic-feature distance at the mean code."""
        del covariates
        network = self.network
        posterior = network.encoder.encode(images)
        reconstruction = network.decode(posterior.mu)
        distance = feature_distance(network.critic.features(images), network.critic.features(reconstruction))
        maps = {"residual": residual(images, target_slice(reconstruction), mask)}
        terms = {"kl": posterior.kl(), "critic_features": distance}
        return Evidence(maps, apply_mask(target_slice(reconstruction), mask), terms, embedding=posterior.mu)

    def embed(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the mean code μ ``(B, latent)``."""
        del mask
        return self.network.encoder.encode(images).mu

    def decode(self, z: Tensor) -> Tensor:
        """Return G(z) ``(B, C, *S)`` of codes ``(B, latent)``."""
        return self.network.decode(z)

    def sample(self, n: int, rng: torch.Generator, covariates: Tensor | None = None) -> Tensor:
        """Return decodings of n codes z ~ N(0, 1), ``(n, C, *S)``."""
        del covariates
        return self.decode(torch.randn((n, self.settings.latent_size), generator=rng, device=rng.device))

    def diagnostics(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Diagnostics:
        """Return signs of mode collapse of G and of an unbalanced critic."""
        rng = torch.Generator(self.network.autoencoder.decoder.lowest.device).manual_seed(0)
        return self.gan_diagnostics(
            batches,
            lambda covariates: self.sample(len(covariates), rng),
            lambda images, _: self.network.critic(images),
        )


def replace_half(z: Tensor, rng: torch.Generator) -> Tensor:
    """Return codes ``(B, latent)``: the first half of z, detached, and new codes ~ N(0, 1) for the second half."""
    new = torch.randn(z.shape, generator=rng, device=z.device)
    half = len(z) // 2
    return torch.cat([z[:half].detach(), new[half:]])
