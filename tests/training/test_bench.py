from __future__ import annotations

from pathlib import Path

from anomaly.models.ae import Autoencoder, AutoencoderSettings
from anomaly.training.bench import StepCost, step_overhead
from anomaly.training.settings import TrainingSettings
from tests.models.factories import GRID, healthy_cohort


def test_a_step_is_timed_with_and_without_what_surrounds_the_network(tmp_path: Path) -> None:
    learner = Autoencoder(AutoencoderSettings(channels=(8, 16), latent_size=4), GRID)
    settings = TrainingSettings(batch_size=2, num_workers=0)
    cost = step_overhead(learner, healthy_cohort(3), settings, tmp_path, steps=3, turns=2)
    assert len(cost.full) == len(cost.bare) == 2
    assert min(cost.full + cost.bare) > 0
    assert list(tmp_path.iterdir()) == []
    assert "loss" not in vars(learner)


def test_the_ratio_is_that_of_neighbours_in_time() -> None:
    assert StepCost(full=(3.0, 6.0, 40.0), bare=(2.0, 4.0, 8.0)).ratio == 1.5
