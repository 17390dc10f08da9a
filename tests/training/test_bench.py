from __future__ import annotations

from pathlib import Path

from anomaly.models.ae import Autoencoder, AutoencoderSettings
from anomaly.training.bench import StepCost, step_overhead
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort


def test_a_step_is_timed_with_and_without_what_surrounds_the_network(tmp_path: Path) -> None:
    learner = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=4), GRID)
    settings = TrainingSettings(batch_size=2, num_workers=0)
    cost = step_overhead(learner, healthy_cohort(3), settings, tmp_path, steps=3)
    assert cost.full > 0
    assert cost.bare > 0
    assert "loss" not in vars(learner)


def test_the_ratio_is_full_over_bare() -> None:
    assert StepCost(full=3.0, bare=2.0).ratio == 1.5
