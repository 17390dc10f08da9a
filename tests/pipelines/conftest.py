from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.calibrate import calibrate
from pipelines.train import train
from tests.pipelines.cohorts import make_cohort, write_config


@dataclass(frozen=True)
class Trained:
    """A calibrated atlas on small cohorts, and where they are."""

    model: Path
    config: Path
    training: Path
    holdout: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    training = make_cohort(folder / "training", range(15))
    holdout = make_cohort(folder / "holdout", range(100, 124))
    config = write_config(folder / "atlas.yaml")
    train(config, training, folder / "model")
    calibrate(folder / "model", holdout, [0.05, 0.10], "tests")
    return Trained(folder / "model", config, training, holdout)
