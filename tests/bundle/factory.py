"""Small trained models on disk, without a cohort."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from anomaly.bundle.config import ExperimentConfig
from anomaly.bundle.store import TrainedBundle, load_bundle, save_bundle
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.core.files import read_json, write_json
from anomaly.models.registry import create
from anomaly.scoring.scorer import Scorer
from anomaly.scoring.settings import ScoringSettings
from anomaly.training.fit import fit
from anomaly.training.run import FitRun
from tests.models.factories import GRID, healthy_cohort

TRAINING_SCANS = (("sub-1", "hash-a"), ("sub-1", "hash-b"), ("sub-2", "hash-c"))
"""Subject and content hash."""

FACTS: dict[str, Any] = {"name": "small", "family": "atlas"}


def config_of(family: str = "atlas", **changes: Any) -> ExperimentConfig:
    """Return the config of a model of a closed-form family."""
    scoring = ScoringSettings(smoothing_mm=0, sd_smoothing_mm=8)
    values = {"name": "small", "preprocessing": {}, "model": {"family": family}, "scoring": scoring.model_dump()}
    return ExperimentConfig.parse(values | changes, "small.yaml")


def trained_scorer(config: ExperimentConfig, folder: Path) -> Scorer:
    """Fit a model to eight healthy scans; six others are held out."""
    detector = create(config.model_settings(), GRID)
    fit(detector, healthy_cohort(8), [], FitRun(folder=folder / "training"))
    return Scorer(detector, config.scoring).learn_reference(healthy_cohort(8), healthy_cohort(6, first=50))


def save_small_bundle(folder: Path, family: str = "atlas", **changes: Any) -> TrainedBundle:
    """Train, save and load a small model."""
    config = config_of(family, **changes)
    save_bundle(
        folder,
        config,
        trained_scorer(config, folder),
        TrainingSubjects.of(TRAINING_SCANS),
        FACTS | {"family": family},
    )
    return load_bundle(folder)


def to_format_1(folder: Path, without: Collection[str] = ()) -> None:
    """Write the metadata of a model as an earlier version did, without some of their keys and files."""
    metadata = read_json(folder / "metadata.json")
    hashes = {name: value for name, value in metadata["hashes"].items() if name not in without}
    kept = {name: value for name, value in metadata.items() if name not in {*without, "metadata_sha256"}}
    model_id = hashlib.sha256("".join(hashes.values()).encode()).hexdigest()[:12]
    write_json(folder / "metadata.json", kept | {"format_version": 1, "model_id": model_id, "hashes": hashes})
