from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import ConfigError
from anomaly.models.base import Decoder, interpolated, interpolates
from anomaly.models.components.latent_autoencoder import QuantisedAutoencoder
from anomaly.models.latent_diffusion import LatentDiffusion, LatentDiffusionSettings
from anomaly.training.protocols import StepInfo
from tests.models.factories import GRID, healthy_scan, images_of

SMALL = {
    "channels": (8, 16),
    "space_to_depth": 1,
    "latent_channels": 4,
    "denoiser_channels": (8, 16),
    "patch": 2,
    "ddim_steps": 2,
}


def new(**changes: Any) -> LatentDiffusion:
    return LatentDiffusion(LatentDiffusionSettings.parse({**SMALL, **changes}, "model"), GRID)


def a_batch(detector: LatentDiffusion, seed: int = 0, n: int = 4) -> tuple[Tensor, Tensor]:
    images, mask = images_of(*healthy_scan(seed), detector.view)
    return images[:n], mask[:n]


def moment(step: int, steps: int = 100, seed: int = 0) -> StepInfo:
    return StepInfo(step, steps, torch.Generator().manual_seed(seed))


def take_steps(detector: LatentDiffusion, steps: Sequence[int]) -> None:
    """Take optimiser steps as training does."""
    detector.train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    for step in steps:
        chosen = {id(p) for p in detector.trainable_part(step, 100).parameters()}
        for parameter in detector.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
        optimiser.zero_grad()
        detector.loss(*a_batch(detector), moment(step))["loss"].backward()
        optimiser.step()
    detector.eval()


class Knows(nn.Module):
    """A denoiser that knows the latent: it returns the velocity that leads there."""

    def __init__(self, detector: LatentDiffusion, z: Tensor) -> None:
        super().__init__()
        self.alphas, self.z = detector.scheduler.alphas_cumprod, z

    def forward(self, shown: Tensor, times: Tensor) -> Tensor:
        z = self.z.repeat(len(shown) // len(self.z), *[1] * (shown.ndim - 1))
        alpha = self.alphas[times].reshape(-1, *[1] * (shown.ndim - 1))
        noise = (shown[:, :-1] - alpha.sqrt() * z) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * z


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_each_phase_changes_its_own_part_alone(kind: str) -> None:
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


def test_the_autoencoder_learns_first_and_scoring_waits_for_the_denoiser() -> None:
    detector = new(autoencoder_share=0.3)
    assert detector.trainable_part(29, 100) is detector.network.autoencoder
    assert detector.trainable_part(30, 100) is detector.network.denoiser
    assert not detector.ready_to_validate(30, 100)  # thirty steps are done, all of them the autoencoder's
    assert detector.ready_to_validate(31, 100)
    assert all(new(autoencoder_share=share).ready_to_validate(1, 1) for share in (0.01, 0.99))


@pytest.mark.parametrize("kind", ["slice", "volume"])
def test_scaled_latents_have_mean_zero_and_unit_sd_over_the_foreground(kind: str) -> None:
    detector = new(view={"kind": kind})
    n = 1 if kind == "volume" else 4
    batches = [a_batch(detector, seed, n) for seed in range(3)]
    with torch.no_grad():
        for images, mask in batches:
            latents = detector.network.autoencoder.encode(detector._folded(images))
            detector.learn_scale(latents, detector._foreground(mask))
        z = torch.cat([detector.to_latent(images) for images, _ in batches]).movedim(1, -1)
    inside = torch.cat([detector._foreground(mask) for _, mask in batches])[:, 0]
    torch.testing.assert_close(z[inside].mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z[inside].std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("colours", [2, 4])
@pytest.mark.parametrize("noise_level", [0.3, 1.0])
def test_a_denoiser_that_knows_the_latent_restores_it(colours: int, noise_level: float) -> None:
    detector = new(colours=colours, ddim_steps=5, noise_level=noise_level)
    images, mask = a_batch(detector)
    with torch.no_grad():
        z = detector.to_latent(images)
        detector.network.denoiser = Knows(detector, z)
        restored = detector.restored(z, detector._foreground(mask))
    torch.testing.assert_close(restored, z, atol=1e-3, rtol=1e-3)


def test_a_scan_whose_latent_needs_no_restoring_has_no_residual_however_badly_it_is_drawn() -> None:
    detector = new()
    images, mask = a_batch(detector)
    with torch.no_grad():
        detector.network.denoiser = Knows(detector, detector.to_latent(images))
        evidence = detector.evidence(images, mask)
    torch.testing.assert_close(evidence.maps["residual"], torch.zeros_like(images), atol=1e-3, rtol=0)
    torch.testing.assert_close(evidence.reconstruction, torch.where(mask, images, 0.0), atol=1e-3, rtol=0)


def test_a_way_between_images_follows_what_the_denoiser_takes_for_their_mean() -> None:
    detector = new(ddim_steps=10)
    images, _ = a_batch(detector)
    first, second = images.chunk(2)
    with torch.no_grad():
        restored = interpolated(detector, first, second, 3)
        z, end = detector.to_latent(first), detector.to_latent(second)
        for step, weight in zip(restored, (0, 0.5, 1), strict=True):
            mean = torch.lerp(z, end, weight)
            detector.network.denoiser = Knows(detector, mean)
            known = detector.interpolate(first, second, weight)
            torch.testing.assert_close(known, detector.to_image(mean), atol=1e-4, rtol=1e-4)
            assert not torch.allclose(known, step, atol=1e-3)


def test_what_is_not_foreground_keeps_its_latent() -> None:
    detector = new()
    images, mask = a_batch(detector)
    foreground = detector._foreground(mask)
    with torch.no_grad():
        z = detector.to_latent(images)
        restored = detector.restored(z, foreground)
    moved = (restored != z).any(dim=1, keepdim=True)
    assert not moved[~foreground].any()
    assert moved[foreground].all()


@pytest.mark.parametrize(("colours", "noise_level", "expected"), [(2, 0.5, 4), (2, 1.0, 8), (4, 0.25, 4)])
def test_the_denoiser_is_asked_once_per_colour_and_step(colours: int, noise_level: float, expected: int) -> None:
    detector = new(colours=colours, ddim_steps=4, noise_level=noise_level)
    images, mask = a_batch(detector)
    asked: list[int] = []
    detector.network.denoiser.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    with torch.no_grad():
        detector.evidence(images, mask)
    assert sum(asked) == expected * len(images)


def test_time_steps_end_one_stride_before_no_noise() -> None:
    assert new(ddim_steps=4).times(1.0) == [999, 749, 499, 249]
    assert new(ddim_steps=4).times(0.5) == [499, 249]
    assert new(ddim_steps=10).times(0.7)[0] == 699
    assert new(ddim_steps=2).times(0.1) == [499]


def test_the_noise_of_scoring_is_the_same_for_every_image_and_every_time() -> None:
    detector = new()
    images, mask = a_batch(detector, n=1)
    with torch.no_grad():
        twice = detector.evidence(torch.cat([images, images]), torch.cat([mask, mask])).maps["residual"]
        torch.manual_seed(99)
        again = detector.evidence(images, mask).maps["residual"]
    torch.testing.assert_close(twice[0], twice[1])
    torch.testing.assert_close(twice[:1], again)


def test_encoding_and_scoring_leave_the_codebook_as_it_is() -> None:
    detector = new(autoencoder="vq").train()
    images, mask = a_batch(detector)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with torch.no_grad():
        z = detector.to_latent(images)
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
    images, mask = a_batch(detector)
    with torch.no_grad():
        evidence = detector.evidence(images, mask)
        code = detector.embed(images, mask)
    assert set(evidence.maps) == {"residual", "latent"}
    assert evidence.maps["latent"].min() >= 0
    assert code.shape == (len(images), 4 * 4**detector.view.spatial_dims)
    assert not isinstance(detector, Decoder)  # this code is too coarse to make an image of
    assert interpolates(detector)
    samples = [detector.sample(2, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert samples[0].shape == (2, detector.view.channels, *detector.image_shape)
    assert torch.equal(*samples)


def test_channels_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8, found 12"):
        new(denoiser_channels=(8, 12))


@pytest.mark.parametrize("steps", [70, 334])
def test_steps_that_do_not_lead_all_the_way_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"must divide 1000.*, found {steps}"):
        new(ddim_steps=steps)
