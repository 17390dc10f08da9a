"""Fixtures and small factories that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.volume import Geometry, Modality, Volume

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of the real scans where those are not installed; they never skip silently in CI."""
    if os.environ.get("ANOMALY_DATA"):
        return
    left = [item for item in items if item.get_closest_marker("real_data") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left


@pytest.fixture(scope="session")
def anomaly_data() -> Path:
    return Path(os.environ["ANOMALY_DATA"]).resolve()


@pytest.fixture(scope="session")
def sample_data() -> Path:
    return REPOSITORY / "sample_data"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240101)


def make_volume(
    shape: tuple[int, int, int] = (12, 14, 10),
    spacing: float = 4.0,
    seed: int = 0,
    modality: Modality = Modality.T1W,
) -> Volume:
    """Return a small ellipsoid "brain" with texture, centred on the world's origin."""
    generator = np.random.default_rng(seed)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    centred = [(np.arange(n) - (n - 1) / 2) / (0.42 * n) for n in shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*centred, indexing="ij")))
    voxels = np.where(radius < 1, 100 + 20 * np.cos(3 * radius) + generator.normal(0, 2, shape), 0)
    return Volume(voxels.astype(np.float32), Geometry(shape, affine), f"sub-{seed:02d}_T1w", modality)
