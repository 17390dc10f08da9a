from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly.cohort.table import read_records
from anomaly.cohort.volumes import CohortVolumes
from pipelines.benchmark.speed import cpu
from pipelines.benchmark.tables import Measurement
from tests.pipelines.conftest import Trained


@pytest.mark.slow
def test_a_cohort_is_repeated_to_any_number_of_scans(trained: Trained, tmp_path: Path) -> None:
    folder = cpu._copies(trained.training, tmp_path / "copies", 20)
    records = read_records(folder)
    assert len({record.scan_id for record in records}) == 20
    original, copies = CohortVolumes(trained.training), CohortVolumes(folder)
    assert np.array_equal(copies[17][0], original[2][0])


@pytest.mark.slow
def test_the_share_of_time_in_the_network_is_between_none_and_all(trained: Trained, tmp_path: Path) -> None:
    row = cpu.forward_share(trained.model, trained.training, tmp_path)
    assert isinstance(row, Measurement)
    assert 0 <= float(row.value.rstrip("%")) <= 100


@pytest.mark.slow
def test_peak_memory_is_that_of_the_command() -> None:
    small, large = (cpu._peak_mebibytes([sys.executable, "-c", f"b'x' * {n}"]) for n in (1, 300 * 2**20))
    assert large - small == pytest.approx(300, abs=30)
