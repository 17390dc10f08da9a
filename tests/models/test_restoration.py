from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly.core.errors import ConfigError
from anomaly.models import registry
from anomaly.models.base import StepInfo
from anomaly.models.components.corruption import CorruptionSettings, corrupt
from anomaly.models.restoration import RestorationNetwork, partly_corrupted, restore_in_steps
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort, healthy_scan, images_of, planted_scan

SMALL = {"family": "restoration", "features": (8, 8, 8, 8, 16, 8)}
SLICES = {"view": {"kind": "slice", "neighbours": 1}, "space_to_depth": 1, "atlas": False}


def new(**changes: Any) -> RestorationNetwork:
    detector = registry.create(registry.parse_settings({**SMALL, **changes}, "model"), GRID)
    assert isinstance(detector, RestorationNetwork)
    return detector


def healthy_and_corrupted() -> tuple[Tensor, Tensor, Tensor]:
    images, mask = images_of(*healthy_scan(0), new().view)
    dark = CorruptionSettings(
        noise_probability=0.0, blob_radius_mm=(24.0, 40.0), dark_share=1.0, flat_share=0.0, foreign_share=0.0
    )
    return images, mask, corrupt(images, mask, GRID.spacing, dark, torch.Generator().manual_seed(1))[0]


def test_grade_0_leaves_images_unchanged_and_grade_1_corrupts_them_fully() -> None:
    images, _, corrupted = healthy_and_corrupted()
    batch, worse = images.expand(3, -1, -1, -1, -1), corrupted.expand(3, -1, -1, -1, -1)
    none, half, whole = partly_corrupted(batch, worse, torch.tensor([0.0, 0.5, 1.0])).split(1)
    assert torch.equal(none, images)
    assert torch.equal(whole, corrupted)
    torch.testing.assert_close(half, (images + corrupted) / 2)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10])
def test_a_perfect_network_gives_the_healthy_image_in_any_number_of_steps(steps: int) -> None:
    images, _, corrupted = healthy_and_corrupted()
    found = restore_in_steps(corrupted, lambda x, grade: (images, grade * torch.ones_like(x)), steps)
    torch.testing.assert_close(found.images, images)
    torch.testing.assert_close(found.residual, corrupted - images, atol=1e-6, rtol=1e-4)


def test_with_a_perfect_network_each_step_gets_the_image_of_its_grade() -> None:
    images, _, corrupted = healthy_and_corrupted()
    seen: list[tuple[float, Tensor]] = []

    def step(x: Tensor, grade: float) -> tuple[Tensor, Tensor]:
        seen.append((grade, x))
        return images, torch.zeros_like(x)

    restore_in_steps(corrupted, step, 4)
    assert [grade for grade, _ in seen] == [1.0, 0.75, 0.5, 0.25]
    for grade, x in seen:
        torch.testing.assert_close(
            x, partly_corrupted(images, corrupted, torch.tensor([grade])), atol=1e-6, rtol=1e-4
        )


def test_a_network_that_corrects_nothing_leaves_the_scan_unchanged() -> None:
    images, _, _ = healthy_and_corrupted()
    found = restore_in_steps(images, lambda x, grade: (x, torch.zeros_like(x)), 5)
    torch.testing.assert_close(found.images, images)
    assert found.residual.abs().max() == 0


@pytest.mark.parametrize("steps", [1, 6, 10])
def test_a_scan_takes_one_pass_of_the_network_per_step(steps: int) -> None:
    detector, passes = new(steps=steps), []
    detector.network.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        detector.evidence(*images_of(*healthy_scan(0), detector.view))
    assert len(passes) == steps


def test_grades_are_above_0_up_to_1_and_images_are_corrupted_by_their_grade() -> None:
    detector = new(**SLICES)
    images, mask = images_of(*healthy_scan(0), detector.view)
    inputs, grade, _, target = detector.corrupt(images, mask, torch.Generator().manual_seed(0))
    whole, _ = corrupt(
        images, mask, (8.0, 8.0, 8.0), detector.settings.corruption, torch.Generator().manual_seed(0)
    )
    assert ((grade > 0) & (grade <= 1)).all()
    assert len(grade.unique()) == len(images)
    torch.testing.assert_close(inputs, partly_corrupted(images, whole, grade))
    assert target.shape == (len(images), 2, *images.shape[2:])
    assert (target.prod(dim=1) == 0).all()  # no voxel is both too dark and too bright


def test_an_untrained_network_corrects_nothing_and_its_loss_is_the_weighted_squared_change() -> None:
    detector = new()
    images, mask = images_of(*healthy_scan(0), detector.view)
    torch.testing.assert_close(detector.reconstruct(images, mask), images)
    corrupted = detector.corrupt(images, mask, torch.Generator().manual_seed(0))
    inputs, _, weight, _ = corrupted
    losses = detector.loss(images, mask, StepInfo(0, 1, torch.Generator()), *corrupted)
    expected = (weight * (inputs - images) ** 2).sum() / (2 * 0.16**2 * mask.sum())
    torch.testing.assert_close(losses["restoration"], expected)


def test_the_correction_is_scaled_by_the_grade_and_the_network_depends_on_the_grade() -> None:
    detector = new(**SLICES, mirror=False)
    torch.nn.init.normal_(detector.network.final_conv.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr,arg-type]
    images, _ = images_of(*healthy_scan(0), detector.view)
    with torch.inference_mode():
        none, low, high = (detector(images, torch.full((len(images),), grade))[0] for grade in (0.0, 0.5, 1.0))
    assert none.abs().max() == 0
    assert not torch.allclose(2 * low, high, atol=1e-3)


def test_background_stays_0_and_a_voxel_of_0_in_the_brain_can_be_restored() -> None:
    detector = new(steps=2, atlas=False)
    torch.nn.init.ones_(detector.network.final_conv.bias)  # type: ignore[union-attr,arg-type]
    voxels, mask = healthy_scan(0)
    voxels[8, 10, 6] = 0.0
    images, inside = images_of(voxels, mask, detector.view)
    with torch.inference_mode():
        restored_images = detector.reconstruct(images, inside)
    assert (restored_images[~inside] == 0).all()
    torch.testing.assert_close(restored_images[inside], images[inside] + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, SLICES, {"view": {"kind": "patch", "size": (8, 8, 8)}, "mirror": False, "atlas": False}]
)
def test_volumes_slabs_and_patches_can_be_trained_on(changes: dict[str, Any], tmp_path: Path) -> None:
    detector = new(**changes)
    training = TrainingSettings(steps=2, batch_size=2, validate_every=2, num_workers=0)
    fit(detector, healthy_cohort(3), [planted_scan()], FitRun(tmp_path, training, device="cpu"))
    images, mask = images_of(*healthy_scan(9), detector.view)
    with torch.inference_mode():
        evidence = detector.evidence(images, mask)
    assert set(evidence.maps) == {"residual", "change_logit"}
    assert evidence.reconstruction.shape == mask.shape


@pytest.mark.slow
def test_a_larger_change_gives_a_larger_change_logit(tmp_path: Path) -> None:
    detector = new(**SLICES, change_logit_weight=3.0, steps=2)
    training = TrainingSettings(steps=60, batch_size=8, learning_rate=5e-3, warmup=2, validate_every=60)
    fit(detector, healthy_cohort(), [], FitRun(tmp_path, training, device="cpu"))
    lesion = images_of(planted_scan().lesion.astype("float32"), planted_scan().mask, detector.view)[0][:, 1:2] > 0
    means = []
    for loss in (0.0, 0.1, 0.3, 0.6):
        scan = planted_scan(loss=loss)
        with torch.inference_mode():
            maps = detector.evidence(*images_of(scan.voxels, scan.mask, detector.view)).maps
        means.append(-float(maps["change_logit"][lesion].mean()))
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 11}, "less than or equal to 10"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"view": {"kind": "patch"}, "atlas": False}, "set mirror to false"),
        ({"view": {"kind": "slice"}}, "atlas needs view kind 'volume'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        new(**changes)
