from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anomaly.core.errors import ConfigError, TrainingError
from anomaly.models import registry
from anomaly.models.base import StepInfo
from anomaly.models.dae import DenoisingAutoencoder
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of, planted_scan

SMALL = {"family": "dae", "features": (8, 8, 8, 8, 16, 8)}


def new(**changes: Any) -> DenoisingAutoencoder:
    detector = registry.create(registry.parse_settings({**SMALL, **changes}, "model"), GRID)
    assert isinstance(detector, DenoisingAutoencoder)
    return detector


def test_an_untrained_network_corrects_nothing() -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    torch.testing.assert_close(detector.reconstruct(images, mask), images)


def test_a_volume_of_any_shape_is_padded_and_cropped() -> None:
    detector = new(atlas=False)
    images = torch.rand(1, 1, 17, 19, 13)
    assert detector.reconstruct(images, images > 0).shape == images.shape


@pytest.mark.slow
def test_training_on_volumes_computes_the_atlas_and_every_map(tmp_path: Path) -> None:
    detector = new(change_logit_weight=1.0, components=2)
    training = TrainingSettings(steps=2, batch_size=1, validate_every=1, num_workers=1)
    fit(detector, healthy_cohort(6), [planted_scan()], FitRun(tmp_path, training, device="cpu"))
    assert detector.mean is not None
    assert detector.components is not None
    expected = sum(torch.from_numpy(healthy_scan(seed)[0]) for seed in range(6)) / 6
    torch.testing.assert_close(detector.mean[0, 0], expected)
    spread = torch.stack([torch.from_numpy(healthy_scan(seed)[0]) for seed in range(6)]).std(0, correction=0)
    torch.testing.assert_close(detector.sd[0, 0], spread, atol=1e-5, rtol=1e-4)
    images, mask = images_of(*healthy_scan(9), detector.view)
    with torch.inference_mode():
        maps = detector.evidence(images, mask).maps
    assert set(maps) == {"residual", "mean_deviation", "pca", "change_logit"}
    assert maps["change_logit"].abs().max() > 0
    torch.testing.assert_close(maps["mean_deviation"], (images - expected) * mask)
    assert maps["pca"].norm() < maps["mean_deviation"].norm()
    torch.testing.assert_close(detector.components @ detector.components.T, torch.eye(2), atol=1e-3, rtol=0)


def test_more_components_than_half_of_the_scans_can_give_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"found 6 healthy scans; model\.components = 3 needs at least 7"):
        fit(new(components=3), healthy_cohort(6), [], FitRun(tmp_path, device="cpu"))


def test_patches_can_be_trained_on(tmp_path: Path) -> None:
    detector = new(view={"kind": "patch", "size": (8, 8, 8)}, mirror=False, atlas=False, change_logit_weight=0.0)
    training = TrainingSettings(steps=1, batch_size=2, validate_every=1, num_workers=0)
    fit(detector, healthy_cohort(2), [], FitRun(tmp_path, training, device="cpu"))
    with torch.inference_mode():
        assert set(detector.evidence(*images_of(*healthy_scan(9), detector.view)).maps) == {"residual"}


@pytest.mark.parametrize("kind", ["volume", "slice"])
@pytest.mark.parametrize(
    "option",
    [{"noise_kind": "simplex", "noise_probability": 1.0}, {"mask_probability": 1.0, "mask_size_mm": 24.0}],
    ids=str,
)
def test_simplex_noise_and_masked_cubes_give_finite_gradients(kind: str, option: dict[str, Any]) -> None:
    detector = new(view={"kind": kind}, atlas=False, corruption=option)
    images, mask = images_of(*healthy_scan(0), detector.view)
    rng = torch.Generator().manual_seed(0)
    corrupted = detector.corrupt(images, mask, rng)
    loss = detector.loss(images, mask, StepInfo(0, 1, rng), *corrupted)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    weight = detector.get_parameter("network.final_conv.weight")
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (8, 8, 8, 8, 20, 8)}, "multiples of 8"),
        ({"features": (8, 8, 8, 8, 8, 8)}, "16 features or more"),
        ({"view": {"kind": "patch"}, "atlas": False}, "set mirror to false"),
        ({"view": {"kind": "slice"}}, "atlas needs view kind 'volume'"),
        ({"atlas": False, "components": 2}, "components need atlas"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        new(**changes)
