from __future__ import annotations

import torch

from anomaly.models.ae import Autoencoder
from anomaly.training.batches import ImageBatches
from anomaly.training.loop import diagnostic_batches, learning_rate_share, make_optimizer
from anomaly.training.settings import TrainingSettings
from anomaly.training.step import TrainingStep
from tests.models.factories import healthy_cohort
from tests.training.test_fit import TRAINING, new


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    settings = TrainingSettings(steps=100, warmup=10)
    shares = [learning_rate_share(step, settings) for step in range(101)]
    assert shares[0] < 0.1
    assert shares[10] == 1
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == 0


def test_batches_that_diagnostics_use_are_never_trained_on() -> None:
    module = TrainingStep(new(), TRAINING)
    cohort = healthy_cohort(4)
    first = next(diagnostic_batches(module, cohort))[0]
    seen = [
        module.prepare(ImageBatches(cohort, module.detector.view, 2, seed=0).batch(n)).images for n in range(12)
    ]
    assert not any(torch.equal(first, images) for images in seen)


def test_a_detector_chooses_the_decay_of_the_moments_of_its_optimiser() -> None:
    class WithOtherBetas(Autoencoder):
        betas = (0.0, 0.9)

    for detector, betas in ((new(), (0.9, 0.999)), (new(WithOtherBetas), (0.0, 0.9))):
        optimizer = make_optimizer(detector, TRAINING)
        assert optimizer.param_groups[0]["betas"] == betas
