from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.core.errors import ConfigError, TrainingError
from anomaly.core.image_views import ImageView
from anomaly.core.volume import Geometry
from anomaly.models.ae import Autoencoder, AutoencoderSettings
from anomaly.models.base import StepInfo, crop, pad, padded_shape, target_slice
from anomaly.models.components.closed_form import principal_components
from anomaly.models.components.conv_autoencoder import LOSSES, LossName
from anomaly.models.generation import Embedder
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from tests.models.factories import GRID, MemoryCohort, healthy_cohort, healthy_scan, images_of


@pytest.mark.parametrize("kind", ["slice", "patch", "volume"])
def test_slices_patches_and_volumes_that_no_stride_divides(kind: str) -> None:
    view = ImageView.parse({"kind": kind, "size": (7, 9, 11)}, "view")
    detector = Autoencoder(AutoencoderSettings(view=view, channels=(8, 16, 16), latent_size=4), GRID)
    images, mask = images_of(*healthy_scan(0), view)
    assert detector.reconstruct(images, mask).shape == mask.shape


def test_the_latent_has_the_length_that_was_asked_for() -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=5), GRID)
    assert detector.network.encode(torch.zeros(3, 1, *detector.padded)).shape == (3, 5)


def test_the_code_of_an_image_can_be_asked_for() -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=5), GRID)
    images, mask = images_of(*healthy_scan(0), detector.view)
    assert isinstance(detector, Embedder)
    code = detector.embed(images, mask)
    assert code.shape == (len(images), 5)
    torch.testing.assert_close(
        crop(detector.network.decode(code), images.shape[2:]), detector.reconstruct(images, mask)
    )


@pytest.mark.parametrize("name", ["l2", "l1", "ssim", "multiscale"])
def test_what_is_minimised_can_be_chosen(name: LossName) -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=5, loss=name), GRID)
    images, mask = images_of(*healthy_scan(0), detector.view)
    loss = detector.loss(images, mask, StepInfo(0, 1, torch.Generator()))["loss"]
    torch.testing.assert_close(loss, LOSSES[name](detector.reconstruct(images, mask), target_slice(images), mask))
    maps = detector.evidence(images, mask).maps
    assert set(maps) == ({"residual", "dissimilarity"} if name == "ssim" else {"residual"})
    assert all((values[~mask] == 0).all() for values in maps.values())


@pytest.mark.slow
def test_a_linear_autoencoder_learns_the_principal_subspace() -> None:
    """Bourlard & Kamp 1988; Baldi & Hornik 1989."""
    rng = torch.Generator().manual_seed(0)
    k, shape = 4, (6, 7, 5)
    strengths = torch.tensor([6.0, 5.0, 4.0, 3.0])
    directions = torch.linalg.qr(torch.randn(42, k, generator=rng))[0]
    scans = 0.1 * torch.randn(80, 42, generator=rng) + 0.5
    scans += (strengths * torch.randn(80, k, generator=rng)) @ directions.T
    images, mask = scans.reshape(80, 1, 6, 7), torch.ones(80, 1, 6, 7, dtype=torch.bool)
    detector = Autoencoder(AutoencoderSettings(channels=(), latent_size=k), Geometry(shape, np.eye(4)))
    optimiser = torch.optim.LBFGS(detector.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss = detector.loss(images, mask, StepInfo(0, 1, rng))["loss"]
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimiser.step(closure)
    mean, components, _ = principal_components(scans.clone(), k)
    weight = detector.get_parameter("network.from_latent.weight")
    learnt = torch.linalg.qr(weight.detach())[0]
    cosines = torch.linalg.svdvals(components @ learnt)
    assert torch.rad2deg(cosines.clamp(max=1).acos()).max() < 1
    projected = (scans - mean) @ components.T @ components
    error = detector.reconstruct(images, mask).flatten(1) - mean - projected
    assert error.norm() < 0.02 * projected.norm()


@pytest.mark.parametrize("kind", ["slice", "volume"])
def test_a_linear_autoencoder_is_linear(kind: str) -> None:
    view = ImageView.parse({"kind": kind}, "view")
    detector = Autoencoder(AutoencoderSettings(view=view, channels=(), latent_size=3), GRID)
    (first, mask), (second, _) = (images_of(*healthy_scan(seed), view) for seed in (0, 1))
    first, second = first[:1], second[:1]
    between = detector.reconstruct(0.3 * first + 0.7 * second, mask)
    ends = 0.3 * detector.reconstruct(first, mask) + 0.7 * detector.reconstruct(second, mask)
    torch.testing.assert_close(between, ends)


def test_channels_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"channels\.1.*multiples of 8, found 20"):
        AutoencoderSettings.parse({"channels": (8, 20)}, "model")


def test_neighbouring_slices_explain_the_middle_one() -> None:
    view = ImageView(kind="slice", neighbours=2)
    detector = Autoencoder(AutoencoderSettings(view=view, channels=(8, 16), latent_size=5), GRID)
    images, mask = images_of(*healthy_scan(0), view)
    assert images.shape[1] == 5
    evidence = detector.evidence(images, mask)
    torch.testing.assert_close(
        evidence.maps["residual"], (images[:, 2:3] - detector.reconstruct(images, mask)) * mask
    )


def test_a_latent_that_could_copy_the_image_is_refused(tmp_path: Path) -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8,), latent_size=16 * 20), GRID)
    with pytest.raises(TrainingError, match=r"latent_size 320 is not smaller than the image \(320 voxels\)"):
        fit(detector, healthy_cohort(2), [], FitRun(tmp_path))


def test_a_single_scan_is_too_few(tmp_path: Path) -> None:
    detector = Autoencoder(AutoencoderSettings(channels=(8,), latent_size=4), GRID)
    with pytest.raises(TrainingError, match=r"found 1 healthy scan\(s\).*expected at least 2"):
        fit(detector, MemoryCohort(healthy_cohort(1).volumes), [], FitRun(tmp_path))


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 9)])
def test_padding_is_undone_by_cropping(shape: tuple[int, ...]) -> None:
    images = torch.rand(2, 1, *shape)
    larger = padded_shape(shape, 4)
    assert all(n % 4 == 0 for n in larger)
    assert torch.equal(crop(pad(images, larger), shape), images)
