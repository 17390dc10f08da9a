"""Synthetic runs that all tests share, because drawing pages is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.results import ScanScore
from anomaly.core.scan_result import TemplateVolumes
from anomaly.runs.reader import RunInfo, read_run_info, read_score, read_volumes
from tests.reports.factory import write_run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("calibrated"), healthy=2)


@pytest.fixture(scope="session")
def uncalibrated_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("uncalibrated"), calibrated=False, healthy=1)


@pytest.fixture(scope="session")
def run(run_dir: Path) -> RunInfo:
    return read_run_info(run_dir)


@pytest.fixture(scope="session")
def score(run_dir: Path) -> ScanScore:
    return read_score(run_dir / "sub-02_T1w" / "score.json")


@pytest.fixture(scope="session")
def volumes(run_dir: Path) -> TemplateVolumes:
    return read_volumes(run_dir, "sub-02_T1w")
