from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly.core.errors import TrainingError
from anomaly.core.image_views import ImageView
from anomaly.core.volume import FloatArray
from anomaly.training.batches import ImageBatches, StepLoader
from tests.models.factories import GRID, MemoryCohort, healthy_cohort

VIEWS = [ImageView(kind="slice", neighbours=1), ImageView(kind="patch", size=(8, 8, 8)), ImageView(kind="volume")]


@pytest.fixture(params=VIEWS, ids=lambda view: view.kind)
def view(request: pytest.FixtureRequest) -> ImageView:
    return ImageView.model_validate(request.param)


def stream(view: ImageView, seed: int = 0, rank: int = 0) -> ImageBatches:
    return ImageBatches(healthy_cohort(4), view, batch_size=3, seed=seed, rank=rank)


def test_a_batch_has_the_shape_of_the_view(view: ImageView) -> None:
    step, images, mask, covariates, corrupted = stream(view).batch(7)
    assert step == 7
    assert corrupted is None
    assert images.shape == (3, view.channels, *view.image_shape(GRID.shape))
    assert mask.shape == (3, 1, *view.image_shape(GRID.shape))
    assert images.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert mask.flatten(1).any(1).all()
    assert covariates.shape == (3, 2)
    assert set(covariates[:, 0].tolist()) <= {20.0, 21.0, 22.0, 23.0}


def test_a_batch_depends_on_seed_and_step_alone(view: ImageView) -> None:
    fresh, used = stream(view), stream(view)
    used.batch(0)
    used.batch(1)
    assert torch.equal(fresh.batch(5)[1], used.batch(5)[1])
    assert not torch.equal(fresh.batch(5)[1], fresh.batch(6)[1])
    assert not torch.equal(fresh.batch(5)[1], stream(view, seed=1).batch(5)[1])
    assert not torch.equal(fresh.batch(5)[1], stream(view, rank=1).batch(5)[1])


def test_memory_mapped_volumes_are_not_changed(view: ImageView) -> None:
    cohort = healthy_cohort(4)
    before = [voxels.copy() for voxels, _ in cohort.volumes]
    for voxels, _ in cohort.volumes:
        voxels.setflags(write=False)
    _, images, *_ = ImageBatches(cohort, view, 4, 0).batch(0)
    images.zero_()
    assert all(np.array_equal(old, new) for old, (new, _) in zip(before, cohort.volumes, strict=True))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_loader_makes_the_batches_of_its_numbers_in_order(threads: int) -> None:
    source = stream(VIEWS[0])
    loader = StepLoader(source.batch, range(10, 15), threads=threads)
    batches = list(loader)
    assert [step for step, *_ in batches] == [10, 11, 12, 13, 14]
    assert all(torch.equal(images, source.batch(step)[1]) for step, images, *_ in batches)


class OfDigits(MemoryCohort):
    """A cohort of whose subjects one number is known."""

    def covariates(self, index: int) -> FloatArray:
        return np.array([index], dtype=np.float32)


def test_a_batch_has_as_many_covariates_as_the_source_knows() -> None:
    covariates = ImageBatches(OfDigits(healthy_cohort(4).volumes), VIEWS[0], 8, 0).batch(0).covariates
    assert covariates.shape == (8, 1)
    assert covariates.dtype == torch.float32
    assert set(covariates[:, 0].tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_an_empty_cohort_is_refused() -> None:
    with pytest.raises(TrainingError, match="no healthy scan"):
        ImageBatches(MemoryCohort([]), VIEWS[0], 1, 0)
