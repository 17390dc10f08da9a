from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from anomaly.bundle import shipped
from anomaly.bundle.compact import compact_bundle
from anomaly.core.audit_log import hash_files
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


SHIPPED: dict[str, Any] = {
    "name": "default",
    "limits": ["For synthetic scans only."],
    "shipped": {
        "reference": "healthy volunteers of one scanner",
        "attribution": "Made from synthetic scans.",
        "licence": "CC0",
    },
}
"""What the metadata of the shipped model of the tests say."""


@pytest.fixture(scope="session")
def pretrained(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of shipped models with one model, ``default``."""
    folder = tmp_path_factory.mktemp("package") / "pretrained"
    compact_bundle(trained.model, folder / "default", SHIPPED)
    calibrate(folder / "default", trained.holdout, [0.05, 0.10], SHIPPED["shipped"]["reference"])
    shutil.rmtree(folder / "default" / "calibration_scans")
    return folder


@pytest.fixture
def shipped_model(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of the shipped model ``default``, which the test must leave as it is."""
    monkeypatch.setattr(shipped, "PRETRAINED", pretrained)
    before = hash_files(pretrained, sorted(pretrained.rglob("*")))
    yield pretrained / "default"
    assert hash_files(pretrained, sorted(pretrained.rglob("*"))) == before
