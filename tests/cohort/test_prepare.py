"""Preparing one scan: the record of every outcome."""

from __future__ import annotations

import copy
import errno
import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.cohort.prepare import PreparationSpec, prepare, record_crash
from anomaly.cohort.record import ScanRecord, record_path
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Modality, Volume
from anomaly.io.discover import ScanSource, discover
from anomaly.io.stored_file import reading, unreadable_error
from anomaly.qc.checks import QcSettings
from tests.cohort.factory import LENIENT, FakeChain, FakeSettings, put_scans


@pytest.fixture
def scan(tmp_path: Path) -> ScanSource:
    return discover([put_scans(tmp_path / "in", "a")])[0]


@pytest.fixture
def spec(tmp_path: Path) -> PreparationSpec:
    return PreparationSpec(FakeChain(FakeSettings()), tmp_path / "cohort", Modality.T1W, LENIENT)


def test_the_record_that_is_returned_is_the_one_on_disk(scan: ScanSource, spec: PreparationSpec) -> None:
    record = prepare(scan, spec)
    assert record.status is ScanStatus.ACCEPTED
    assert ScanRecord.load(record_path(spec.folder, scan.scan_id)) == record


def test_a_scan_that_fails_the_checks_is_refused_with_its_numbers(scan: ScanSource, spec: PreparationSpec) -> None:
    record = prepare(scan, replace(spec, qc=QcSettings()))
    assert (record.status, record.reason_code) == (ScanStatus.REFUSED, "too_few_slices")
    assert record.numbers["min_slices"] == 10
    assert record.content_hash
    assert not record.volume


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.EIO, "Input/output error"), ScanStatus.FAILED),
        (OSError(errno.ESTALE, "Stale file handle"), ScanStatus.FAILED),
        (PermissionError(errno.EACCES, "Permission denied"), ScanStatus.FAILED),
        (FileNotFoundError(errno.ENOENT, "No such file"), ScanStatus.REFUSED),
        (gzip.BadGzipFile("CRC check failed"), ScanStatus.REFUSED),
        (EOFError("ended early"), ScanStatus.REFUSED),
    ],
)
def test_a_scan_that_may_be_readable_later_has_failed_and_one_that_is_damaged_is_refused(
    scan: ScanSource, spec: PreparationSpec, monkeypatch: pytest.MonkeyPatch, error: Exception, status: ScanStatus
) -> None:
    def read(_: ScanSource) -> Volume:
        with reading():
            raise error
        raise AssertionError("the error is turned into a refusal")

    monkeypatch.setattr(ScanSource, "read", read)
    record = prepare(scan, spec)
    assert (record.status, record.reason_code) == (status, "unreadable")
    assert ("make the file readable" in record.remedy) is (status is ScanStatus.FAILED)


def test_a_scan_that_was_found_unreadable_for_now_has_failed_in_a_worker_process_too(
    scan: ScanSource, spec: PreparationSpec
) -> None:
    refusal = unreadable_error("a file that cannot be read", is_transient=True)
    sent = copy.deepcopy(
        replace(scan, refusal=refusal)
    )  # as pickle rebuilds it, from its arguments and without cause
    assert prepare(sent, spec).status is ScanStatus.FAILED


def test_a_scan_whose_worker_crashed_is_recorded_as_failed(scan: ScanSource, spec: PreparationSpec) -> None:
    prepare(scan, spec)
    record = record_crash(scan, "its process was killed", spec)
    assert (record.status, record.reason_code) == (ScanStatus.FAILED, "worker_died")
    assert not list((spec.folder / "volumes").iterdir())


def test_a_contradiction_in_the_header_is_a_warning_of_the_record(tmp_path: Path, spec: PreparationSpec) -> None:
    path = put_scans(tmp_path / "in", "a")
    file = next(path.rglob("*.nii.gz"))
    image = nib.load(file)
    image.set_qform(image.affine @ np.diag([1, 1, 1.2, 1]), code=1)
    nib.save(image, file)
    record = prepare(discover([path])[0], spec)
    assert record.status is ScanStatus.ACCEPTED
    assert any("an sform and a qform that differ by up to" in warning for warning in record.warnings)


@pytest.mark.parametrize("change", ["chain", "checks", "modality"])
def test_every_setting_that_changes_the_result_changes_the_input_hash(
    scan: ScanSource, spec: PreparationSpec, change: str
) -> None:
    other = {
        "chain": replace(spec, chain=FakeChain(FakeSettings(gain=3))),
        "checks": replace(spec, qc=QcSettings()),
        "modality": replace(spec, modality=Modality.UNKNOWN),
    }[change]
    assert spec.initial_record(scan).input_hash != other.initial_record(scan).input_hash
    assert spec.initial_record(scan).input_hash == replace(spec).initial_record(scan).input_hash
