from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.core.errors import ConfigError
from anomaly.core.volume import Geometry
from anomaly.models.base import StepInfo, either_foreground
from anomaly.models.flow import CouplingFlow, FlowSettings, NormalisingFlow
from anomaly.models.generation import interpolate
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import AugmentationSettings, TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of

SMALL = {"space_to_depth": 2, "hidden": 8, "couplings": 4}


def new(grid: Geometry = GRID, **changes: Any) -> NormalisingFlow:
    return NormalisingFlow(FlowSettings.parse({**SMALL, **changes}, "model"), grid)


def set_random_weights(module: torch.nn.Module, seed: int = 0) -> None:
    """Give a flow weights that scale and shift."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=rng))


def flow_and_image(kind: str = "slice", **changes: Any) -> tuple[NormalisingFlow, Tensor, Tensor]:
    """Return a flow with random weights, an image and its mask."""
    detector = new(view={"kind": kind}, **changes)
    detector.prepare(healthy_cohort(4))
    set_random_weights(detector.network)
    images, mask = images_of(*healthy_scan(0), detector.view)
    return detector, images[len(images) // 2 :][:1], mask[len(mask) // 2 :][:1]


def density_on_a_grid(flow: CouplingFlow, side: int = 161, reach: float = 12.0) -> tuple[Tensor, Tensor]:
    """Return points ``(N, 2)`` and log p at them."""
    axis = torch.linspace(-reach, reach, side)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    z, log_det = flow(points, torch.ones_like(points), torch.zeros(len(points), 1))
    return points, (-0.5 * z**2 - 0.5 * math.log(2 * math.pi) + log_det).sum(1)


@pytest.mark.parametrize("kind", ["slice", "volume"])
@pytest.mark.parametrize("factor", [2, 3])
def test_the_inverse_recovers_the_image(kind: str, factor: int) -> None:
    detector, images, mask = flow_and_image(kind, space_to_depth=factor)
    locations = detector.locations(mask)
    with torch.no_grad():
        z, log_det = detector.forward(images, mask, locations)
        back = detector.inverse(z, mask, locations)
    assert (log_det * locations.inside).abs().max() > 0.5
    torch.testing.assert_close(back, torch.where(mask, images, 0.0), atol=1e-4, rtol=1e-4)


def test_interpolation_starts_at_the_first_image_and_ends_at_the_second() -> None:
    detector, first, _ = flow_and_image()
    second = images_of(*healthy_scan(1), detector.view)[0][len(first) :][:1]
    steps = interpolate(detector, first, second, 5)
    torch.testing.assert_close(steps[0], first, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steps[4], second, atol=1e-4, rtol=1e-4)
    mask = either_foreground(first, second)
    locations = detector.locations(mask)
    lengths = [detector.forward(images, mask, locations)[0].norm(dim=1) for images in steps]
    torch.testing.assert_close(lengths[2], (lengths[0] + lengths[4]) / 2, atol=1e-3, rtol=1e-3)


def test_the_likelihood_agrees_with_the_jacobian_by_automatic_differentiation() -> None:
    tiny = Geometry((4, 6, 3), np.diag([8.0, 8.0, 8.0, 1.0]))
    detector = new(tiny, view={"kind": "slice"})
    detector.prepare(healthy_cohort(3, grid=tiny))
    set_random_weights(detector.network)
    images = torch.rand(1, 1, 4, 6, generator=torch.Generator().manual_seed(1))
    mask = images > 0.3
    inside = mask.flatten()

    def noise_of(values: Tensor) -> Tensor:
        filled = torch.zeros(inside.numel()).masked_scatter(inside, values)
        locations = detector.locations(mask)
        z, _ = detector.forward(filled.reshape(images.shape), mask, locations)
        return detector._unfolded(z, locations.where)[mask]

    values = images[mask]
    jacobian = torch.autograd.functional.jacobian(noise_of, values)
    z = noise_of(values)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum() + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(
        -detector.negative_log_likelihood(images, mask).sum(), expected, rtol=1e-4, atol=1e-4
    )


def test_the_density_of_two_numbers_integrates_to_one() -> None:
    flow = CouplingFlow(2, 1, FlowSettings.parse(SMALL, "model"))
    set_random_weights(flow)
    with torch.no_grad():
        points, log_density = density_on_a_grid(flow)
    cell = float(points[1, 1] - points[0, 1]) ** 2
    assert abs(float(log_density.exp().sum()) * cell - 1) < 1e-2


@pytest.mark.slow
def test_a_trained_flow_beats_the_gaussian_on_a_curve() -> None:
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(256, generator=rng)
    second = first**2 + 0.2 * torch.randn(256, generator=rng)
    data = torch.stack([first, second], dim=1)
    data = (data - data.mean(0)) / data.std(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = CouplingFlow(2, 1, FlowSettings.parse({**SMALL, "hidden": 16}, "model"))
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    ones, condition = torch.ones_like(data), torch.zeros(len(data), 1)
    for _ in range(80):
        z, log_det = flow(data, ones, condition)
        nll = (0.5 * z**2 + 0.5 * math.log(2 * math.pi) - log_det).sum(1).mean()
        optimiser.zero_grad()
        nll.backward()
        optimiser.step()
    covariance = torch.cov(data.T)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
    assert nll.item() < -float(gaussian.log_prob(data).mean()) - 0.3


def test_the_loss_is_the_negative_log_likelihood_per_voxel() -> None:
    detector, images, mask = flow_and_image(noise_sd=0.0)
    with torch.no_grad():
        loss = detector.loss(images, mask, StepInfo(0, 1, torch.Generator().manual_seed(0)))["loss"]
        evidence = detector.evidence(images, mask)
    torch.testing.assert_close(loss, evidence.terms["negative_log_likelihood"][0])
    torch.testing.assert_close(evidence.maps["nll"][mask].mean(), loss)


def test_before_training_a_volume_is_as_likely_as_under_the_voxelwise_gaussian(tmp_path: Path) -> None:
    detector = new()
    detector.prepare(healthy_cohort())
    images, mask = images_of(*healthy_scan(50), detector.view)
    gaussian = torch.distributions.Normal(detector.mean, detector.sd)
    expected = -(gaussian.log_prob(images) * mask).sum() / mask.sum()
    with torch.no_grad():
        found = detector.evidence(images, mask).terms["negative_log_likelihood"][0]
    torch.testing.assert_close(found, expected)


def test_the_background_does_not_change_the_evidence() -> None:
    detector, images, mask = flow_and_image()
    with torch.no_grad():
        clean = detector.evidence(images, mask)
        dirty = detector.evidence(torch.where(mask, images, 7.0), mask)
    assert torch.equal(clean.maps["nll"], dirty.maps["nll"])
    torch.testing.assert_close(clean.maps["residual"], dirty.maps["residual"])


def test_a_typical_latent_stays_within_its_radius_and_keeps_its_direction() -> None:
    detector, images, mask = flow_and_image(typical_radius=0.5)
    locations = detector.locations(mask)
    with torch.no_grad():
        z, _ = detector.forward(images, mask, locations)
        typical = detector.typical(z, locations)
    assert (typical.norm(dim=1) <= 0.5 * locations.inside.sum(1).sqrt() + 1e-4).all()
    cosine = torch.nn.functional.cosine_similarity(z, typical, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_large_radius_leaves_the_image_unchanged_and_radius_0_gives_the_centre() -> None:
    wide, images, mask = flow_and_image(typical_radius=100.0)
    narrow, _, _ = flow_and_image(typical_radius=0.0)
    locations = narrow.locations(mask)
    with torch.no_grad():
        residual = wide.evidence(images, mask).maps["residual"]
        centre = narrow.inverse(torch.zeros_like(locations.inside), mask, locations)
        torch.testing.assert_close(narrow.reconstruct(images, mask), centre)
    torch.testing.assert_close(residual, torch.zeros_like(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["slice", "volume"])
def test_a_sample_is_the_inverse_of_noise(kind: str) -> None:
    detector, _, _ = flow_and_image(kind)
    samples = detector.sample(3, torch.Generator().manual_seed(4))
    assert samples.shape == (3, 1, *detector.image_shape)
    assert samples.isfinite().all()
    assert torch.equal(samples, detector.sample(3, torch.Generator().manual_seed(4)))
    mask = samples != 0
    locations = detector.locations(mask)
    with torch.no_grad():
        z = detector.forward(samples, mask, locations)[0][locations.inside > 0]
    assert abs(float(z.mean())) < 0.15
    assert abs(float(z.std()) - 1) < 0.15


def test_the_mean_is_voxelwise_for_volumes_and_a_scalar_for_slices() -> None:
    volume, slices = new(), new(view={"kind": "slice"})
    for detector in (volume, slices):
        detector.prepare(healthy_cohort(4))
    voxels = torch.stack([torch.from_numpy(healthy_scan(seed)[0]) for seed in range(4)])
    masks = torch.stack([torch.from_numpy(healthy_scan(seed)[1]) for seed in range(4)])
    everywhere = masks.all(0)
    torch.testing.assert_close(volume.mean[0, 0][everywhere], voxels.mean(0)[everywhere])
    torch.testing.assert_close(slices.mean.squeeze(), voxels[masks].mean())


WHOLE = {"view": {"kind": "slice"}, "space_to_depth": 20}
"""Slices of 16 by 20 voxels, each of which is one location."""


def test_an_image_can_be_one_location_whose_voxels_depend_on_one_another() -> None:
    detector = new(**WHOLE)
    detector.prepare(healthy_cohort(4))
    set_random_weights(detector.network)
    images, mask = images_of(*healthy_scan(0), detector.view)
    images, mask = images[5:6].requires_grad_(), mask[5:6]
    locations = detector.locations(mask)
    z, _ = detector.forward(images, mask, locations)
    assert z.shape == (1, 20 * 20)
    (slope,) = torch.autograd.grad(z[0, locations.inside[0] > 0][0], images)
    assert (slope != 0).sum() > 0.2 * mask.sum()
    nll = detector.negative_log_likelihood(images, mask)[mask]
    assert (nll == nll[0]).all()
    torch.testing.assert_close(detector.inverse(z, mask, locations), torch.where(mask, images, 0.0))


def test_the_mean_is_voxelwise_where_an_image_is_one_location() -> None:
    detector = new(**WHOLE)
    detector.prepare(healthy_cohort(4))
    slices = [images_of(*healthy_scan(seed), detector.view) for seed in range(4)]
    images, masks = (torch.cat(parts) for parts in zip(*slices, strict=True))
    often = masks.sum(0) >= 3
    mean = (images * masks).sum(0) / masks.sum(0).clamp_min(1)
    torch.testing.assert_close(detector.mean[0][often], mean[often])
    gaussian = torch.distributions.Normal(detector.mean, detector.sd)
    with torch.no_grad():
        found = detector.negative_log_likelihood(images, masks).sum()
    torch.testing.assert_close(found, -(gaussian.log_prob(images) * masks).sum())


def test_images_that_are_one_location_can_be_trained_on_and_sampled(tmp_path: Path) -> None:
    detector = new(**WHOLE, noise_sd=0.01)
    training = TrainingSettings(steps=3, batch_size=4, validate_every=3)
    fit(detector, healthy_cohort(4), [], FitRun(tmp_path, training, device="cpu"))
    samples = detector.sample(3, torch.Generator().manual_seed(0))
    assert samples.shape == (3, 1, 16, 20)
    assert samples.isfinite().all()


def test_too_many_voxels_per_location_are_refused() -> None:
    assert new(view={"kind": "slice"}, space_to_depth=64).settings.space_to_depth == 64
    with pytest.raises(ConfigError, match="makes locations of 4913 voxels; expected at most 4096"):
        new(space_to_depth=17)


@pytest.mark.parametrize(
    ("view", "message"),
    [({"kind": "patch"}, "needs voxel positions"), ({"neighbours": 1, "kind": "slice"}, "neighbours to 0")],
)
def test_views_that_a_flow_cannot_model_are_refused(view: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlowSettings.parse({"family": "flow", "view": view}, "model")


@pytest.mark.slow
def test_training_makes_healthy_scans_more_likely(tmp_path: Path) -> None:
    detector = new(hidden=16, noise_sd=0.01)
    images, mask = images_of(*healthy_scan(50), detector.view)
    detector.prepare(healthy_cohort())
    with torch.no_grad():
        before = detector.evidence(images, mask).terms["negative_log_likelihood"]
    same = AugmentationSettings(deform=0, gamma=0, brightness=0, bias_field=0, noise=0, blur=0)
    training = TrainingSettings(
        steps=40, batch_size=4, learning_rate=5e-3, warmup=2, validate_every=40, augmentation=same
    )
    fit(detector, healthy_cohort(), [], FitRun(tmp_path, training, device="cpu"))
    with torch.no_grad():
        after = detector.evidence(images, mask).terms["negative_log_likelihood"]
    assert float(after) < float(before) - 0.1
