from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import ConfigError
from anomaly.models.components.latent_autoencoder import QuantisedAutoencoder
from anomaly.models.generation import Decoder, can_interpolate, interpolate
from anomaly.models.latent_diffusion import LatentDiffusion, LatentDiffusionSettings
from tests.models.factories import GRID, healthy_scan, images_of, step_info

SMALL = {
    "channels": (8, 16),
    "space_to_depth": 1,
    "latent_channels": 4,
    "denoiser_channels": (8, 16),
    "patch_size": 2,
    "ddim_steps": 2,
}


def new(**changes: Any) -> LatentDiffusion:
    return LatentDiffusion(LatentDiffusionSettings.parse({**SMALL, **changes}, "model"), GRID)


def first_images(detector: LatentDiffusion, seed: int = 0, n: int = 4) -> tuple[Tensor, Tensor]:
    images, mask = images_of(*healthy_scan(seed), detector.view)
    return images[:n], mask[:n]


def take_steps(detector: LatentDiffusion, steps: Sequence[int]) -> None:
    """Take optimiser steps as training does."""
    detector.train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    for step in steps:
        chosen = {id(p) for p in detector.trainable_part(step, 100).parameters()}
        for parameter in detector.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        optimiser.zero_grad()
        detector.loss(*first_images(detector), step_info(step))["loss"].backward()
        optimiser.step()
    detector.eval()


class ExactDenoiser(nn.Module):
    """A denoiser that knows the clean latent and returns its exact velocity."""

    def __init__(self, detector: LatentDiffusion, z: Tensor) -> None:
        super().__init__()
        self.alphas, self.z = detector.scheduler.alphas_cumprod, z

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        z = self.z.repeat(len(noisy) // len(self.z), *[1] * (noisy.ndim - 1))
        alpha = self.alphas[timesteps].reshape(-1, *[1] * (noisy.ndim - 1))
        noise = (noisy[:, :-1] - alpha.sqrt() * z) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * z


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_each_phase_trains_only_its_own_part(kind: str) -> None:
    detector = new(autoencoder=kind)
    start = {name: value.clone() for name, value in detector.state_dict().items()}
    take_steps(detector, [0, 1])
    middle = {name: value.clone() for name, value in detector.state_dict().items()}
    take_steps(detector, [98, 99])
    end = detector.state_dict()

    def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
        names = {name for name in before if not torch.equal(before[name], after[name])}
        return {name.removeprefix("network.").split(".")[0] for name in names}

    assert changed(start, middle) == {"autoencoder"}
    assert changed(middle, end) == {"denoiser", "latent_mean", "latent_square", "latents_seen"}


def test_the_autoencoder_is_trained_first_and_validation_waits_for_the_denoiser() -> None:
    detector = new(autoencoder_share=0.3)
    assert detector.trainable_part(29, 100) is detector.network.autoencoder
    assert detector.trainable_part(30, 100) is detector.network.denoiser
    assert not detector.ready_to_validate(30, 100)  # thirty steps are done, all of the autoencoder
    assert detector.ready_to_validate(31, 100)
    assert all(new(autoencoder_share=share).ready_to_validate(1, 1) for share in (0.01, 0.99))


@pytest.mark.parametrize("kind", ["slice", "volume"])
def test_standardised_latents_have_mean_zero_and_unit_sd_over_the_foreground(kind: str) -> None:
    detector = new(view={"kind": kind})
    n = 1 if kind == "volume" else 4
    batches = [first_images(detector, seed, n) for seed in range(3)]
    with torch.no_grad():
        for images, mask in batches:
            latents = detector.network.autoencoder.encode(detector._space_to_depth(images))
            detector.update_statistics(latents, detector._foreground(mask))
        z = torch.cat([detector.encode_latent(images) for images, _ in batches]).movedim(1, -1)
    inside = torch.cat([detector._foreground(mask) for _, mask in batches])[:, 0]
    torch.testing.assert_close(z[inside].mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z[inside].std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("colours", [2, 4])
@pytest.mark.parametrize("noise_level", [0.3, 1.0])
def test_an_exact_denoiser_restores_the_latent(colours: int, noise_level: float) -> None:
    detector = new(patch_sets=colours, ddim_steps=5, noise_level=noise_level)
    images, mask = first_images(detector)
    with torch.no_grad():
        z = detector.encode_latent(images)
        detector.network.denoiser = ExactDenoiser(detector, z)
        restored = detector.restore(z, detector._foreground(mask))
    torch.testing.assert_close(restored, z, atol=1e-3, rtol=1e-3)


def test_an_unchanged_latent_has_no_residual_even_if_the_autoencoder_is_poor() -> None:
    detector = new()
    images, mask = first_images(detector)
    with torch.no_grad():
        detector.network.denoiser = ExactDenoiser(detector, detector.encode_latent(images))
        evidence = detector.evidence(images, mask)
    torch.testing.assert_close(evidence.maps["residual"], torch.zeros_like(images), atol=1e-3, rtol=0)
    torch.testing.assert_close(evidence.reconstruction, torch.where(mask, images, 0.0), atol=1e-3, rtol=0)


def test_interpolation_denoises_the_weighted_mean_of_two_latents() -> None:
    detector = new(ddim_steps=10)
    images, _ = first_images(detector)
    first, second = images.chunk(2)
    with torch.no_grad():
        restored = interpolate(detector, first, second, 3)
        z, end = detector.encode_latent(first), detector.encode_latent(second)
        for step, weight in zip(restored, (0, 0.5, 1), strict=True):
            mean = torch.lerp(z, end, weight)
            detector.network.denoiser = ExactDenoiser(detector, mean)
            known = detector.interpolate(first, second, weight)
            torch.testing.assert_close(known, detector.decode_latent(mean), atol=1e-4, rtol=1e-4)
            assert not torch.allclose(known, step, atol=1e-3)


def test_latents_outside_the_foreground_do_not_change() -> None:
    detector = new()
    images, mask = first_images(detector)
    foreground = detector._foreground(mask)
    with torch.no_grad():
        z = detector.encode_latent(images)
        restored = detector.restore(z, foreground)
    changed = (restored != z).any(dim=1, keepdim=True)
    assert not changed[~foreground].any()
    assert changed[foreground].all()


@pytest.mark.parametrize(("colours", "noise_level", "expected"), [(2, 0.5, 4), (2, 1.0, 8), (4, 0.25, 4)])
def test_the_denoiser_runs_once_per_colour_and_step(colours: int, noise_level: float, expected: int) -> None:
    detector = new(patch_sets=colours, ddim_steps=4, noise_level=noise_level)
    images, mask = first_images(detector)
    batch_sizes: list[int] = []
    detector.network.denoiser.register_forward_hook(lambda module, inputs, output: batch_sizes.append(len(output)))
    with torch.no_grad():
        detector.evidence(images, mask)
    assert sum(batch_sizes) == expected * len(images)


def test_timesteps_end_one_stride_before_0() -> None:
    assert new(ddim_steps=4).ddim_timesteps(1.0) == [999, 749, 499, 249]
    assert new(ddim_steps=4).ddim_timesteps(0.5) == [499, 249]
    assert new(ddim_steps=10).ddim_timesteps(0.7)[0] == 699
    assert new(ddim_steps=2).ddim_timesteps(0.1) == [499]


def test_scoring_adds_the_same_noise_to_every_image() -> None:
    detector = new()
    images, mask = first_images(detector, n=1)
    with torch.no_grad():
        twice = detector.evidence(torch.cat([images, images]), torch.cat([mask, mask])).maps["residual"]
        torch.manual_seed(99)
        again = detector.evidence(images, mask).maps["residual"]
    torch.testing.assert_close(twice[0], twice[1])
    torch.testing.assert_close(twice[:1], again)


def test_encoding_and_scoring_do_not_change_the_codebook() -> None:
    detector = new(autoencoder="vq").train()
    images, mask = first_images(detector)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with torch.no_grad():
        z = detector.encode_latent(images)
        detector.evidence(images, mask)
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    autoencoder = detector.network.autoencoder
    assert isinstance(autoencoder, QuantisedAutoencoder)
    torch.testing.assert_close(autoencoder.nearest(z), z)


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("view", [{"kind": "slice", "neighbours": 1}, {"kind": "patch", "size": (8, 8, 8)}])
@pytest.mark.parametrize("fold", [1, 2])
def test_both_autoencoders_give_maps_codes_and_samples(kind: str, view: dict[str, Any], fold: int) -> None:
    detector = new(autoencoder=kind, view=view, space_to_depth=fold)
    images, mask = first_images(detector)
    with torch.no_grad():
        evidence = detector.evidence(images, mask)
        code = detector.embed(images, mask)
    assert set(evidence.maps) == {"residual", "latent"}
    assert evidence.maps["latent"].min() >= 0
    assert code.shape == (len(images), 4 * 4**detector.view.spatial_dims)
    assert not isinstance(detector, Decoder)  # the embedding is too coarse to be decoded
    assert can_interpolate(detector)
    samples = [detector.sample(2, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert samples[0].shape == (2, detector.view.channels, *detector.image_shape)
    assert torch.equal(*samples)


def test_channels_that_are_not_multiples_of_8_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8, found 12"):
        new(denoiser_channels=(8, 12))


@pytest.mark.parametrize("steps", [70, 334])
def test_ddim_steps_that_do_not_divide_the_timesteps_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"must divide 1000.*, found {steps}"):
        new(ddim_steps=steps)
