"""Fixtures and small factories that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly.cohort import build
from anomaly.cohort.workers import run_in_order
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


@pytest.fixture(scope="session", autouse=True)
def site_key_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the key for pseudonyms away from the account that runs the tests; spawned processes use it, too."""
    path = tmp_path_factory.mktemp("site") / "site.key"
    path.write_text("5a" * 32, encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_SITE_KEY_FILE", str(path))
        yield path


@contextmanager
def without_worker_processes() -> Iterator[None]:
    """Prepare scans in this process inside the block.

    A worker process takes seconds to start. The tests in ``tests/cohort/``, ``tests/pipelines/test_demo.py`` and
    ``tests/test_wheel.py`` use worker processes.
    """

    def run_here(work: Callable[[Any], Any], tasks: Iterable[Any], on_crash: Any, jobs: int) -> Iterator[Any]:
        return run_in_order(work, tasks, on_crash, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "run_in_order", run_here)
        yield


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Prepare all scans of a test module in this process."""
    with without_worker_processes():
        yield


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
