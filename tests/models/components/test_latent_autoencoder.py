from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import ConfigError
from anomaly.models.components.latent_autoencoder import (
    AutoencoderSettings,
    GaussianAutoencoder,
    QuantisedAutoencoder,
    build_autoencoder,
    patch_colours,
)


def settings(**changes: Any) -> AutoencoderSettings:
    return AutoencoderSettings.parse(
        {"family": "test", "channels": (8, 16), "latent_channels": 3, "num_embeddings": 5, **changes}, "model"
    )


def images(n: int = 2) -> Tensor:
    return torch.rand((n, 4, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_every_stage_but_the_first_halves_the_image(kind: str) -> None:
    autoencoder = build_autoencoder(2, 4, settings(autoencoder=kind))
    with torch.no_grad():
        z = autoencoder.encode(images())
        assert z.shape == (2, 3, 4, 4)
        assert autoencoder.decode(z).shape == (2, 4, 8, 8)


def test_the_latents_of_scoring_are_the_mean_and_those_of_training_are_samples() -> None:
    autoencoder = GaussianAutoencoder(2, 4, settings())
    with torch.no_grad():
        mean = autoencoder.net.encode(images())[0]
        assert torch.equal(autoencoder.encode(images()), mean)
        first, again, other = (
            autoencoder.training_pass(images(), torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_penalty_of_gaussian_latents_is_the_weighted_kl_per_latent_number() -> None:
    autoencoder = GaussianAutoencoder(2, 4, settings(kl_weight=0.5))
    with torch.no_grad():
        mu, sigma = autoencoder.net.encode(images())
        _, penalty = autoencoder.training_pass(images(), torch.Generator())
    posterior, prior = torch.distributions.Normal(mu, sigma), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(penalty, 0.5 * torch.distributions.kl_divergence(posterior, prior).mean())


def test_quantised_latents_are_the_nearest_entries_of_the_codebook() -> None:
    autoencoder = QuantisedAutoencoder(2, 4, settings(autoencoder="vq"))
    with torch.no_grad():
        encoded = autoencoder.net.encode(images()).movedim(1, -1).flatten(0, 2)
        found = autoencoder.encode(images()).movedim(1, -1).flatten(0, 2)
    entries = autoencoder.net.quantizer.quantizer.embedding.weight.detach()
    torch.testing.assert_close(found, entries[torch.cdist(encoded, entries).argmin(dim=1)])


def test_only_a_training_pass_updates_the_codebook_and_gradients_reach_the_encoder() -> None:
    autoencoder = QuantisedAutoencoder(2, 4, settings(autoencoder="vq")).train()
    entries = autoencoder.net.quantizer.quantizer.embedding.weight
    before = entries.detach().clone()
    with torch.no_grad():
        autoencoder.decode(autoencoder.encode(images()))
    assert torch.equal(entries, before)
    reconstruction, penalty = autoencoder.training_pass(images(), torch.Generator())
    assert not torch.equal(entries, before)
    ((reconstruction - images()).square().mean() + penalty).backward()  # type: ignore[no-untyped-call]
    encoder: nn.Module = autoencoder.net.encoder
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_channels_that_are_not_multiples_of_8_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        settings(channels=(8, 12))


def test_patch_colours_alternate_from_the_origin_of_the_checkerboard() -> None:
    colours = patch_colours((4, 4), 2, 2, torch.tensor([[0, 0], [2, 0]]))
    assert colours.shape == (2, 1, 4, 4)
    assert colours[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert torch.equal(colours[1], 1 - colours[0])
