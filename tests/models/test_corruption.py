from __future__ import annotations

import pytest
import torch

from anomaly.core.views import View
from anomaly.models.corruption import CorruptionSettings, corrupt
from tests.models.factories import healthy_scan, images_of

SPACING = (8.0, 8.0, 8.0)
VIEWS = [View(kind="volume"), View(kind="slice", neighbours=1), View(kind="patch", size=(8, 8, 8))]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=VIEWS, ids=lambda view: view.kind)
def images_and_mask(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [images_of(*healthy_scan(seed), request.param) for seed in range(4)]
    return torch.cat([images for images, _ in pairs]), torch.cat([mask for _, mask in pairs])


def test_corruption_keeps_shapes_background_and_range(images_and_mask: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, mask = images_and_mask
    corrupted, changed = corrupt(images, mask, SPACING, CorruptionSettings(), rng())
    assert corrupted.shape == images.shape
    assert changed.shape == mask.shape
    assert (corrupted[images == 0] == 0).all()
    assert corrupted.max() <= images.max()
    assert corrupted.min() >= 0
    assert ((changed >= 0) & (changed <= 1)).all()


def test_corruption_repeats_with_its_generator(images_and_mask: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, mask = images_and_mask
    first, again = (corrupt(images, mask, SPACING, CorruptionSettings(), rng(3))[0] for _ in range(2))
    other = corrupt(images, mask, SPACING, CorruptionSettings(), rng(4))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_noise_only_the_blobs_are_changed(images_and_mask: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, mask = images_and_mask
    quiet = CorruptionSettings(noise_probability=0.0, blob_radius_mm=(24.0, 40.0))
    corrupted, changed = corrupt(images, mask, SPACING, quiet, rng(1))
    middle = images.shape[1] // 2
    moved = (corrupted - images)[:, middle : middle + 1].abs()
    assert moved[changed < 1e-6].max() < 1e-4
    assert moved[changed > 0.9].mean() > 0.02


def test_nothing_switched_on_changes_nothing(images_and_mask: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, mask = images_and_mask
    corrupted, changed = corrupt(images, mask, SPACING, CorruptionSettings(noise_probability=0.0, blobs=0), rng())
    torch.testing.assert_close(corrupted, images)
    assert changed.max() < 1e-6


def test_dark_shifts_darken(images_and_mask: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, mask = images_and_mask
    dark = CorruptionSettings(noise_probability=0.0, dark=1.0, flat=0.0, foreign=0.0)
    corrupted, _ = corrupt(images, mask, SPACING, dark, rng(2))
    assert (corrupted - images).max() < 1e-5
    assert (corrupted - images).min() < -0.02


@pytest.mark.parametrize(("kind", "other", "contrast"), [("foreign", "flat", 0.5), ("flat", "foreign", 0.0)])
def test_a_foreign_blob_shows_tissue_and_a_flat_one_none(kind: str, other: str, contrast: float) -> None:
    _, mask = images_of(*healthy_scan(0), VIEWS[0])
    odd = torch.arange(mask.shape[2]).reshape(1, 1, -1, 1, 1).expand(mask.shape) % 2 == 1
    striped = mask * (0.5 + 0.5 * odd)
    settings = CorruptionSettings.model_validate(
        {"noise_probability": 0.0, "blobs": 1, "blob_radius_mm": (60.0, 61.0), kind: 1.0, other: 0.0}
    )
    corrupted, changed = corrupt(striped, mask, SPACING, settings, rng(3))
    inside = changed > 0.99
    shown = corrupted[inside & odd].median() - corrupted[inside & ~odd].median()
    assert abs(abs(float(shown)) - contrast) < 0.05


def test_every_number_of_blobs_is_drawn_and_no_image_is_left_alone() -> None:
    images, mask = images_of(*healthy_scan(0), VIEWS[0])
    settings = CorruptionSettings(noise_probability=0.0, blobs=5, blob_radius_mm=(8.0, 9.0))
    volumes = torch.tensor([float(corrupt(images, mask, SPACING, settings, rng(n))[1].sum()) for n in range(30)])
    assert volumes.min() > 0
    assert volumes.max() > 3 * volumes.min()
