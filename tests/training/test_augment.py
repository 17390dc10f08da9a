from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from anomaly.core.image_views import ImageView
from anomaly.training.augment import _positions, augment
from anomaly.training.settings import AugmentationSettings
from tests.models.factories import healthy_scan, images_of

OFF = AugmentationSettings(deform=1, flip=0, gamma=0, brightness=0, bias_field=0, noise=0, blur=0)
VIEWS = [ImageView(kind="slice", neighbours=1), ImageView(kind="volume")]
ACTIVE_VALUE = {
    "flip": 1.0,
    "translate": 2.0,
    "rotate": 20.0,
    "scale": 0.2,
    "elastic": 0.3,
    "gamma": 0.3,
    "brightness": 0.2,
    "bias_field": 0.2,
    "noise": 0.05,
    "blur": 1.0,
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=VIEWS, ids=lambda view: view.kind)
def view(request: pytest.FixtureRequest) -> ImageView:
    return ImageView.model_validate(request.param)


def test_switched_off_it_changes_nothing(view: ImageView) -> None:
    images, mask = images_of(*healthy_scan(0), view)
    same, same_mask = augment(images, mask, view, OFF, rng())
    assert torch.equal(same, images)
    assert torch.equal(same_mask, mask)


def test_every_switch_is_tested() -> None:
    assert {"deform", "elastic_nodes", *ACTIVE_VALUE} == set(AugmentationSettings.model_fields)


def test_some_batches_are_deformed_and_others_are_not(view: ImageView) -> None:
    images, mask = images_of(*healthy_scan(0), view)
    settings = OFF.model_copy(update={"translate": 3.0, "deform": 0.5})
    moved = [not torch.equal(augment(images, mask, view, settings, rng(seed))[0], images) for seed in range(40)]
    assert 10 < sum(moved) < 30


@pytest.mark.parametrize("name", sorted(ACTIVE_VALUE))
def test_each_switch_changes_the_image_repeatably_and_not_the_background(view: ImageView, name: str) -> None:
    images, mask = images_of(*healthy_scan(0), view)
    settings = OFF.model_copy(update={name: ACTIVE_VALUE[name]})
    changed, changed_mask = augment(images, mask, view, settings, rng())
    again, _ = augment(images, mask, view, settings, rng())
    assert not torch.equal(changed, images)
    assert torch.equal(changed, again)
    assert changed.isfinite().all()
    assert changed.shape == images.shape
    middle = view.channels // 2
    assert (changed[:, middle : middle + 1][~changed_mask] == 0).all()


def test_a_whole_shift_moves_voxels_by_whole_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    view = VIEWS[1]
    images, mask = images_of(*healthy_scan(0), view)
    monkeypatch.setattr("torch.rand", lambda size, **_: torch.ones(size))
    moved, moved_mask = augment(images, mask, view, OFF.model_copy(update={"translate": 2.0}), rng())
    torch.testing.assert_close(moved[:, :, :-2, :-2, :-2], images[:, :, 2:, 2:, 2:], atol=1e-4, rtol=0)
    assert torch.equal(moved_mask[:, :, :-2, :-2, :-2], mask[:, :, 2:, 2:, 2:])


@pytest.mark.parametrize("nodes", [4, 12])
def test_a_bent_image_is_not_folded(nodes: int) -> None:
    images = torch.ones(8, 1, 40, 48, 44)
    positions = _positions(images, OFF.model_copy(update={"elastic": 0.3}), nodes, rng())
    for axis in range(3):
        steps = positions[:, axis].diff(dim=1 + axis)
        assert abs(float(steps.mean()) - 1) < 0.1
        assert float((steps < 0).float().mean()) < 0.02
        assert float(steps.std()) > 0.1


@pytest.mark.parametrize("nodes", [(1, 4), (8, 4)])
def test_a_range_of_nodes_that_is_none_is_refused(nodes: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match=r"elastic_nodes: found \[\d, 4\]; expected 2 or more"):
        AugmentationSettings(elastic_nodes=nodes)


def test_a_mirrored_image_is_the_flipped_volume() -> None:
    images, mask = images_of(*healthy_scan(0), VIEWS[1])
    mirrored, mirrored_mask = augment(images, mask, VIEWS[1], OFF.model_copy(update={"flip": 1.0}), rng())
    assert torch.equal(mirrored, images.flip(2))
    assert torch.equal(mirrored_mask, mask.flip(2))


def test_sagittal_slices_are_not_mirrored() -> None:
    view = ImageView(kind="slice", axis=0)
    images, mask = images_of(*healthy_scan(0), view)
    assert torch.equal(augment(images, mask, view, OFF.model_copy(update={"flip": 1.0}), rng())[0], images)


def test_blur_keeps_the_mean_inside_the_foreground(view: ImageView) -> None:
    images, mask = images_of(*healthy_scan(0), view)
    blurred, _ = augment(images, mask, view, OFF.model_copy(update={"blur": 1.0}), rng())
    torch.testing.assert_close(blurred.flatten(1).sum(1), images.flatten(1).sum(1))
    assert blurred.flatten(1).std() <= images.flatten(1).std()
