from __future__ import annotations

import torch

from anomaly.models.dae import DenoisingAutoencoder, DenoisingSettings
from anomaly.training.batches import Batch, ImageBatches
from anomaly.training.settings import AugmentationSettings
from anomaly.training.step import TrainingStep
from tests.models.factories import GRID, healthy_cohort
from tests.training.test_fit import TRAINING


def test_a_batch_made_ready_ahead_is_the_one_made_within_the_step() -> None:
    detector = DenoisingAutoencoder(DenoisingSettings(features=(8, 8, 8, 8, 16, 8), atlas=False), GRID)
    module = TrainingStep(detector, TRAINING)
    batch = ImageBatches(healthy_cohort(4), detector.view, batch_size=2, seed=0).batch(5)
    ahead, within = (module(b)["loss"] for b in (module.prepare(batch), batch))
    assert torch.equal(ahead, within)
    other = module(ImageBatches(healthy_cohort(4), detector.view, 2, seed=0).batch(6))["loss"]
    assert not torch.equal(ahead, other)


def test_batches_are_made_in_float32_where_the_network_runs_in_bfloat16() -> None:
    deform = AugmentationSettings(deform=1.0, translate=2.0, rotate=4.0, elastic=0.3)
    settings = TRAINING.model_copy(update={"augmentation": deform})
    module = TrainingStep(DenoisingAutoencoder(DenoisingSettings(), GRID), settings)
    images = torch.rand((1, 1, *GRID.shape), generator=torch.Generator().manual_seed(0))
    batch = Batch(0, images, images > 0.1, torch.full((1, 2), torch.nan))
    plain = module.prepare(batch)
    with torch.autocast("cpu", torch.bfloat16):
        within = module.prepare(batch)
        assert module(batch)["loss"].isfinite()
    assert torch.equal(plain.images, within.images)
    assert all(torch.equal(a, b) for a, b in zip(plain.corrupted, within.corrupted, strict=True))
