from __future__ import annotations

from typing import Any

import pytest
import torch

from anomaly.core.image_views import ImageView
from anomaly.models.components.corruption import CorruptionSettings, corrupt
from tests.models.factories import healthy_scan, images_of

SPACING = (8.0, 8.0, 8.0)
VIEWS = [ImageView(kind="volume"), ImageView(kind="slice", neighbours=1), ImageView(kind="patch", size=(8, 8, 8))]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=VIEWS, ids=lambda view: view.kind)
def images_and_mask(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    return everything(request.param)


def everything(view: ImageView) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images and masks of four scans."""
    pairs = [images_of(*healthy_scan(seed), view) for seed in range(4)]
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


@pytest.mark.parametrize(
    ("view", "settings", "expected"),
    [
        (VIEWS[0], {}, (9.602146e-3, -1.696279e-3, 0.04413176)),
        (VIEWS[0], {"noise_probability": 1.0, "foreign_share": 0.5}, (1.931465e-2, 7.127838e-4, 0.04413176)),
        (VIEWS[1], {}, (2.587013e-2, -7.161169e-3, 0.09614020)),
        (VIEWS[2], {"noise_probability": 1.0, "foreign_share": 0.5}, (4.416078e-2, -8.848192e-3, 0.1889237)),
    ],
)
def test_options_that_are_off_do_not_change_the_random_numbers(
    view: ImageView, settings: dict[str, Any], expected: tuple[float, float, float]
) -> None:
    """The expected numbers were computed before these options existed; older trainings stay reproducible."""
    images, mask = everything(view)
    corrupted, changed = corrupt(images, mask, SPACING, CorruptionSettings(**settings), rng(5))
    moved = corrupted - images
    ramp = torch.linspace(0, 1, moved[0].numel()).reshape(moved[0].shape)
    found = torch.stack([moved.abs().mean(), (moved * ramp).mean(), changed.mean()])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_a_single_slice_is_corrupted() -> None:
    images, mask = everything(ImageView(kind="slice"))
    corrupted, changed = corrupt(images, mask, SPACING, CorruptionSettings(), rng())
    assert corrupted.shape == images.shape == changed.shape
    assert corrupted.isfinite().all()
    assert changed.max() > 0.9


def test_simplex_noise_is_as_strong_as_coarse_noise_and_rougher(
    images_and_mask: tuple[torch.Tensor, torch.Tensor],
) -> None:
    images, mask = images_and_mask
    plain = {"noise_probability": 1.0, "noise": (0.05, 0.05), "noise_scales_mm": (64.0,), "max_blobs": 0}
    spread, roughness = {}, {}
    for kind in ("coarse", "simplex"):
        settings = CorruptionSettings.model_validate({**plain, "noise_kind": kind})
        moved = torch.stack([corrupt(images, mask, SPACING, settings, rng(n))[0] - images for n in range(4)])
        spread[kind] = float(moved.std())
        roughness[kind] = float(moved.diff(dim=-1).abs().mean() / moved.abs().mean())
    assert 0.7 < spread["simplex"] / spread["coarse"] < 1.4
    assert roughness["simplex"] > 1.2 * roughness["coarse"]


@pytest.mark.parametrize(
    "option",
    [{"noise_kind": "simplex"}, {"mask_probability": 1.0}, {"mask_probability": 1.0, "mask_fill": "zero"}],
    ids=str,
)
def test_options_repeat_with_their_generator_and_keep_the_background(
    option: dict[str, Any], images_and_mask: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, mask = images_and_mask
    settings = CorruptionSettings(noise_probability=1.0, **option)
    first, again = (corrupt(images, mask, SPACING, settings, rng(3)) for _ in range(2))
    plain = corrupt(images, mask, SPACING, CorruptionSettings(noise_probability=1.0), rng(3))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], plain[0])
    assert (first[1] >= plain[1]).all()  # the local changes are the same
    assert (first[0][images == 0] == 0).all()
    assert first[0].isfinite().all()


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_masking_changes_only_the_masked_cubes(
    fill: str, images_and_mask: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, mask = images_and_mask
    values = {
        "noise_probability": 0.0,
        "max_blobs": 0,
        "mask_probability": 1.0,
        "mask_size_mm": 24.0,
        "mask_fill": fill,
    }
    corrupted, changed = corrupt(images, mask, SPACING, CorruptionSettings.model_validate(values), rng(1))
    middle = images.shape[1] // 2
    before, after = (stack[:, middle : middle + 1] for stack in (images, corrupted))
    masked = changed > 0.5
    assert 0.2 < masked[mask & (before != 0)].float().mean() < 0.4  # mask_share is 0.3
    torch.testing.assert_close(after[~masked], before[~masked])
    if fill == "zero":
        assert after[masked].abs().max() == 0
    else:
        assert abs(float(after[masked].mean() / before[masked].mean()) - 1) < 0.05
        assert after[masked].std() < before[masked].std()


@pytest.mark.slow
def test_a_masked_cube_extends_through_the_slices_of_a_slab_and_some_images_are_not_masked() -> None:
    images, mask = everything(VIEWS[1])
    settings = CorruptionSettings(
        noise_probability=0.0, max_blobs=0, mask_probability=0.5, mask_size_mm=800.0, mask_share=0.5
    )
    corrupted, _ = corrupt(images, mask, SPACING, settings, rng(2))
    touched = (corrupted != images).flatten(2).any(dim=2)
    assert (touched.all(dim=1) | ~touched.any(dim=1)).float().mean() > 0.95
    assert 0.1 < touched.any(dim=1).float().mean() < 0.5


def test_without_noise_only_the_inside_of_blobs_is_changed(
    images_and_mask: tuple[torch.Tensor, torch.Tensor],
) -> None:
    images, mask = images_and_mask
    quiet = CorruptionSettings(noise_probability=0.0, blob_radius_mm=(24.0, 40.0))
    corrupted, changed = corrupt(images, mask, SPACING, quiet, rng(1))
    middle = images.shape[1] // 2
    moved = (corrupted - images)[:, middle : middle + 1].abs()
    assert moved[changed < 1e-6].max() < 1e-4
    assert moved[changed > 0.9].mean() > 0.02


def test_with_all_changes_off_images_are_unchanged(images_and_mask: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, mask = images_and_mask
    corrupted, changed = corrupt(
        images, mask, SPACING, CorruptionSettings(noise_probability=0.0, max_blobs=0), rng()
    )
    torch.testing.assert_close(corrupted, images)
    assert changed.max() < 1e-6


def test_dark_shifts_darken(images_and_mask: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, mask = images_and_mask
    dark = CorruptionSettings(noise_probability=0.0, dark_share=1.0, flat_share=0.0, foreign_share=0.0)
    corrupted, _ = corrupt(images, mask, SPACING, dark, rng(2))
    assert (corrupted - images).max() < 1e-5
    assert (corrupted - images).min() < -0.02


@pytest.mark.parametrize(
    ("kind", "other", "contrast"), [("foreign_share", "flat_share", 0.5), ("flat_share", "foreign_share", 0.0)]
)
def test_a_foreign_blob_has_tissue_contrast_and_a_flat_one_has_none(kind: str, other: str, contrast: float) -> None:
    _, mask = images_of(*healthy_scan(0), VIEWS[0])
    odd = torch.arange(mask.shape[2]).reshape(1, 1, -1, 1, 1).expand(mask.shape) % 2 == 1
    striped = mask * (0.5 + 0.5 * odd)
    settings = CorruptionSettings.model_validate(
        {"noise_probability": 0.0, "max_blobs": 1, "blob_radius_mm": (60.0, 61.0), kind: 1.0, other: 0.0}
    )
    corrupted, changed = corrupt(striped, mask, SPACING, settings, rng(3))
    inside = changed > 0.99
    difference = corrupted[inside & odd].median() - corrupted[inside & ~odd].median()
    assert abs(abs(float(difference)) - contrast) < 0.05


def test_the_number_of_blobs_varies_and_every_image_has_one() -> None:
    images, mask = images_of(*healthy_scan(0), VIEWS[0])
    settings = CorruptionSettings(noise_probability=0.0, max_blobs=5, blob_radius_mm=(8.0, 9.0))
    volumes = torch.tensor([float(corrupt(images, mask, SPACING, settings, rng(n))[1].sum()) for n in range(30)])
    assert volumes.min() > 0
    assert volumes.max() > 3 * volumes.min()
