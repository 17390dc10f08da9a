"""One scan in, one record out, whatever happens on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomaly.cohort.prepare import PreparationSpec, lost, prepare
from anomaly.cohort.record import ScanRecord, record_path
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Modality
from anomaly.io.discover import ScanSource, discover
from anomaly.qc.checks import QcSettings
from tests.cohort.factory import LENIENT, FakeChain, FakeSettings, put_scans


@pytest.fixture
def scan(tmp_path: Path) -> ScanSource:
    return discover([put_scans(tmp_path / "in", "a")])[0]


@pytest.fixture
def recipe(tmp_path: Path) -> PreparationSpec:
    return PreparationSpec(FakeChain(FakeSettings()), tmp_path / "cohort", Modality.T1W, LENIENT)


def test_the_record_that_is_returned_is_the_one_on_disk(scan: ScanSource, recipe: PreparationSpec) -> None:
    record = prepare(scan, recipe)
    assert record.status is ScanStatus.ACCEPTED
    assert ScanRecord.load(record_path(recipe.folder, scan.scan_id)) == record


def test_a_scan_that_fails_the_checks_is_refused_with_its_numbers(
    scan: ScanSource, recipe: PreparationSpec
) -> None:
    record = prepare(scan, replace(recipe, qc=QcSettings()))
    assert (record.status, record.reason_code) == (ScanStatus.REFUSED, "too_few_slices")
    assert record.numbers["min_slices"] == 10
    assert record.content_hash
    assert not record.volume


def test_the_record_of_a_lost_scan_says_so(scan: ScanSource, recipe: PreparationSpec) -> None:
    prepare(scan, recipe)
    record = lost(scan, recipe, "its process was killed")
    assert (record.status, record.reason_code) == (ScanStatus.FAILED, "worker_died")
    assert not list((recipe.folder / "volumes").iterdir())


@pytest.mark.parametrize("change", ["chain", "checks", "modality"])
def test_everything_that_decides_the_result_decides_reuse(
    scan: ScanSource, recipe: PreparationSpec, change: str
) -> None:
    other = {
        "chain": replace(recipe, chain=FakeChain(FakeSettings(gain=3))),
        "checks": replace(recipe, qc=QcSettings()),
        "modality": replace(recipe, modality=Modality.UNKNOWN),
    }[change]
    assert recipe.blank(scan).input_hash != other.blank(scan).input_hash
    assert recipe.blank(scan).input_hash == replace(recipe).blank(scan).input_hash
