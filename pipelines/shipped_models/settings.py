"""Settings of a model that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from anomaly.bundle.arrays import VoxelBits
from anomaly.core.config import Settings, load_yaml


class ShippedModelSettings(Settings):
    """How a shipped model is made, and what its card says."""

    config: str = Field(description="config of the model: a shipped name, or a YAML file")
    healthy: Path = Field(description="healthy scans, relative to --data")
    calibration_subjects: int = Field(default=24, ge=2, description="subjects that calibrate; the others train")
    seed: int = Field(default=0, description="seed of the random split")
    alphas: tuple[float, ...] = Field(
        default=(0.05, 0.10), min_length=1, description="target false-positive rates; the first is the default"
    )
    voxel_bits: VoxelBits = Field(default=16, description="bits per number of an array of voxels: 16 or 8")
    max_mb: float = Field(default=10.0, gt=0, description="largest size of the model folder, MB")
    max_score_difference: float = Field(
        default=1e-3, gt=0, description="largest relative difference that compact storage may make to a scan score"
    )
    reference: str = Field(min_length=1, description="which scans calibrate; the reason of the calibrations")
    attribution: str = Field(min_length=1, description="sentence on the source of the scans")
    licence: str = Field(min_length=1, description="licence of the model")
    limits: tuple[str, ...] = Field(default=(), description="sentences that the card adds to its limits")

    def facts(self, name: str) -> dict[str, Any]:
        """Return the entries of the metadata of the shipped model."""
        shipped = self.model_dump(mode="json", include={"reference", "attribution", "licence"})
        return {"name": name, "limits": list(self.limits), "shipped": shipped}


def load_settings(path: Path) -> ShippedModelSettings:
    """Read the settings of a shipped model.

    Raises
    ------
    ConfigError
        The file cannot be read, or a key or a value is not valid.
    """
    return ShippedModelSettings.parse(load_yaml(path), where=str(path))
