"""Volumes of a cohort, as memory maps that cannot change the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly.cohort.build import build_cohort
from anomaly.cohort.volumes import CohortVolumes
from anomaly.core.errors import CohortError
from anomaly.io.discover import discover
from tests.cohort.factory import LENIENT, FakeChain, FakeSettings, put_scans


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    scans = discover([put_scans(tmp_path / "in", "a", "b", "refuse", "c")])
    list(build_cohort(scans, FakeChain(FakeSettings()), tmp_path / "cohort", jobs=0, qc=LENIENT))
    return tmp_path / "cohort"


def test_the_accepted_scans_are_in_the_order_of_the_manifest(cohort: Path) -> None:
    volumes = CohortVolumes(cohort)
    assert [record.scan_id for record in volumes.records] == ["sub-a_T1w", "sub-b_T1w", "sub-c_T1w"]
    assert len(volumes) == 3
    assert volumes.grid.shape == (12, 14, 10)


def test_voxels_are_zero_outside_the_mask(cohort: Path) -> None:
    voxels, mask = CohortVolumes(cohort)[1]
    assert (voxels.dtype, mask.dtype) == (np.float32, np.bool_)
    assert mask.any()
    assert not voxels[~mask].any()


def test_a_volume_is_memory_mapped(cohort: Path) -> None:
    voxels, _ = CohortVolumes(cohort)[0]
    assert isinstance(voxels, np.memmap)
    assert voxels.flags.writeable
    voxels[:] = 7
    assert CohortVolumes(cohort)[0][0].max() != 7


def test_scans_can_be_selected(cohort: Path) -> None:
    volumes = CohortVolumes(cohort)
    chosen = volumes.select(volumes.records[1:2])
    np.testing.assert_array_equal(chosen[0][0], volumes[1][0])
    assert len(chosen) == 1


def test_iterating_ends(cohort: Path) -> None:
    assert len(list(CohortVolumes(cohort))) == 3


def test_a_selection_without_accepted_scans_is_an_error(cohort: Path) -> None:
    with pytest.raises(CohortError, match="no accepted scan"):
        CohortVolumes(cohort, [])


def test_a_missing_volume_is_an_error_that_says_what_to_do(cohort: Path) -> None:
    volumes = CohortVolumes(cohort)
    (cohort / volumes.records[0].volume).unlink()
    with pytest.raises(CohortError, match="ingest again"):
        volumes[0]


@pytest.mark.slow
def test_reading_a_cohort_does_not_import_torch() -> None:
    code = "import sys, anomaly.cohort.volumes, anomaly.cohort.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
