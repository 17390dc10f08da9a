from __future__ import annotations

from pathlib import Path

from anomaly.training.run import FitRun
from anomaly.training.settings import TrainingSettings


def test_the_seed_of_a_run_overrides_that_of_the_training_settings(tmp_path: Path) -> None:
    training = TrainingSettings(seed=3, steps=7)
    assert FitRun(tmp_path, training).settings == training
    assert FitRun(tmp_path, training, seed=0).settings == training.model_copy(update={"seed": 0})
