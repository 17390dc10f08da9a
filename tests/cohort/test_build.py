"""Building a cohort: records, duplicates, interrupted builds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from anomaly.cohort.build import build_cohort, read_cohort
from anomaly.cohort.table import ScanRecord, read_manifest, read_records
from anomaly.core.errors import CohortError, DamagedFileError, OutputError
from anomaly.core.results import ScanStatus
from anomaly.core.volume import Modality
from anomaly.io.discover import discover
from anomaly.io.nifti import read_nifti
from tests.cohort.factory import LENIENT, FakeChain, FakeSettings, put_scans
from tests.io.dicom_factory import make_series, write_series


def build(
    source: Path, cohort: Path, jobs: int = 0, log_folder: Path | None = None, **settings: float
) -> list[ScanRecord]:
    if log_folder is not None:
        log_folder.mkdir(exist_ok=True)
    chain = FakeChain(FakeSettings(**settings), log_folder)
    return list(build_cohort(discover([source]), chain, cohort, jobs=jobs, modality=Modality.T1W, qc=LENIENT))


def statuses(records: list[ScanRecord]) -> dict[str, str]:
    return {r.scan_id.removeprefix("sub-").removesuffix("_T1w"): r.status.value for r in records}


def n_times_prepared(log_folder: Path) -> dict[str, int]:
    return {
        path.name.removeprefix("sub-").removesuffix("_T1w"): len(path.read_text()) for path in log_folder.iterdir()
    }


def untimed(records: list[ScanRecord]) -> list[dict]:
    rows = [asdict(record) for record in records]
    for row in rows:
        row["numbers"] = {k: v for k, v in row["numbers"].items() if not k.startswith("seconds")}
    return rows


def test_an_accepted_scan_has_volume_mask_geometry_and_metrics(tmp_path: Path) -> None:
    source, cohort = put_scans(tmp_path / "in", "a"), tmp_path / "cohort"
    (record,) = build(source, cohort)
    scan = read_nifti(source / "sub-a_T1w.nii.gz")
    np.testing.assert_allclose(read_nifti(cohort / record.volume).voxels, scan.voxels * 2)
    assert record.geometry.same_as(scan.geometry)
    assert record.source == "../in/sub-a_T1w.nii.gz"
    assert record.numbers["overlap"] == 0.9
    assert {"seconds_read", "seconds_check", "seconds_preprocess", "seconds_write"} <= set(record.numbers)


def test_every_scan_is_recorded_whatever_its_status(tmp_path: Path) -> None:
    source = put_scans(tmp_path / "in", "a", "refuse", "fail", "memory")
    (source / "sub-broken_T1w.nii.gz").write_text("broken")
    records = build(source, tmp_path / "cohort")
    assert statuses(records) == {
        "a": "accepted", "broken": "refused", "fail": "failed", "memory": "failed", "refuse": "refused",
    }  # fmt: skip
    by_id = {record.scan_id: record for record in records}
    assert by_id["sub-refuse_T1w"].reason_code == "no_brain"
    assert by_id["sub-fail_T1w"].reason.endswith("while trying to preprocess the scan: the chain broke")
    assert by_id["sub-memory_T1w"].reason_code == "out_of_memory"
    assert read_records(tmp_path / "cohort") == [
        ScanRecord(**{**asdict(r), "status": r.status, "input_hash": ""}) for r in records
    ]


def test_scans_of_another_modality_are_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub-a_CT.nii.gz").write_text("never read")
    (record,) = build(tmp_path, tmp_path / "cohort")
    assert (record.status, record.reason_code) == (ScanStatus.REFUSED, "wrong_modality")


def test_mr_is_refused_where_ct_is_expected_even_without_a_contrast_in_its_header(tmp_path: Path) -> None:
    write_series(tmp_path / "in", make_series(8, SeriesDescription="ax", EchoTime=40))
    scans = discover([tmp_path / "in"], Modality.CT)
    (record,) = build_cohort(scans, FakeChain(FakeSettings()), tmp_path / "cohort", jobs=0, modality=Modality.CT)
    assert record.reason_code == "wrong_modality"


def test_a_scan_without_a_contrast_in_its_header_gets_the_expected_modality_and_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path / "in", make_series(8, SeriesDescription="ax", EchoTime=40))
    (record,) = build(tmp_path / "in", tmp_path / "cohort")
    assert (record.status, record.modality) == (ScanStatus.ACCEPTED, "T1w")
    assert "which is assumed" in record.warnings[0]


def test_a_duplicate_is_dropped_and_names_the_original(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    records = build(put_scans(tmp_path / "in", "a", "b", "a-again"), cohort)
    assert statuses(records) == {"a": "accepted", "aagain": "duplicate", "b": "accepted"}
    duplicate = records[1]
    assert duplicate.duplicate_of == "sub-a_T1w"
    assert "same content as sub-a_T1w" in duplicate.reason
    assert not (cohort / "volumes" / "sub-aagain_T1w.nii").exists()


@pytest.mark.slow
def test_records_and_volumes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = put_scans(tmp_path / "in", "a", "b", "a-again", "refuse", "fail", "c")
    alone, together = build(source, tmp_path / "one", jobs=0), build(source, tmp_path / "two", jobs=2)
    assert untimed(alone) == untimed(together)
    for record in alone:
        if record.volume:
            assert (tmp_path / "one" / record.volume).read_bytes() == (
                tmp_path / "two" / record.volume
            ).read_bytes()


@pytest.mark.slow
def test_a_scan_that_crashes_its_worker_fails_without_stopping_the_others(tmp_path: Path) -> None:
    records = build(put_scans(tmp_path / "in", "a", "b", "die", "e", "f"), tmp_path / "cohort", jobs=2)
    assert statuses(records) == {
        "a": "accepted", "b": "accepted", "die": "failed", "e": "accepted", "f": "accepted",
    }  # fmt: skip
    assert records[2].reason_code == "worker_died"


def test_finished_scans_are_not_prepared_again(tmp_path: Path) -> None:
    source, log_folder = put_scans(tmp_path / "in", "a", "refuse", "a-again"), tmp_path / "log_folder"
    first = build(source, tmp_path / "cohort", log_folder=log_folder)
    second = build(source, tmp_path / "cohort", log_folder=log_folder)
    assert first == second
    assert n_times_prepared(log_folder) == {"a": 1, "refuse": 1, "aagain": 1}


def test_scans_that_an_earlier_version_finished_are_not_prepared_again(tmp_path: Path) -> None:
    source, log_folder = put_scans(tmp_path / "in", "a"), tmp_path / "log"
    build(source, tmp_path / "cohort", log_folder=log_folder)
    (path,) = (tmp_path / "cohort" / "records").iterdir()
    path.write_text(path.read_text().replace('"input_hash"', '"made_from"'))
    build(source, tmp_path / "cohort", log_folder=log_folder)
    assert n_times_prepared(log_folder) == {"a": 1}


def test_a_failed_scan_is_tried_again(tmp_path: Path) -> None:
    source, log_folder = put_scans(tmp_path / "in", "a", "fail"), tmp_path / "log_folder"
    for _ in range(2):
        build(source, tmp_path / "cohort", log_folder=log_folder)
    assert n_times_prepared(log_folder) == {"a": 1, "fail": 2}


def test_a_changed_file_is_prepared_again(tmp_path: Path) -> None:
    source, log_folder = put_scans(tmp_path / "in", "a", "b"), tmp_path / "log_folder"
    (before, _) = build(source, tmp_path / "cohort", log_folder=log_folder)
    (source / "sub-a_T1w.nii.gz").write_bytes((source / "sub-b_T1w.nii.gz").read_bytes())
    after = build(source, tmp_path / "cohort", log_folder=log_folder)
    assert n_times_prepared(log_folder) == {"a": 2, "b": 1}
    assert after[0].content_hash != before.content_hash
    assert statuses(after) == {"a": "accepted", "b": "duplicate"}


def test_a_duplicate_without_its_original_is_prepared_again(tmp_path: Path) -> None:
    source = put_scans(tmp_path / "in", "a", "a-again")
    build(source, tmp_path / "cohort")
    (source / "sub-a_T1w.nii.gz").unlink()
    assert statuses(build(source, tmp_path / "cohort")) == {"aagain": "accepted"}


def test_another_chain_prepares_all_scans_again(tmp_path: Path) -> None:
    source, log_folder = put_scans(tmp_path / "in", "a"), tmp_path / "log_folder"
    build(source, tmp_path / "cohort", log_folder=log_folder)
    build(source, tmp_path / "cohort", log_folder=log_folder, gain=3.0)
    assert n_times_prepared(log_folder) == {"a": 2}


def test_a_missing_volume_is_written_again(tmp_path: Path) -> None:
    source = put_scans(tmp_path / "in", "a")
    (record,) = build(source, tmp_path / "cohort")
    (tmp_path / "cohort" / record.volume).unlink()
    build(source, tmp_path / "cohort")
    assert (tmp_path / "cohort" / record.volume).is_file()


@pytest.mark.parametrize("column", ["volume", "mask"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "changed"])
def test_a_damaged_volume_or_mask_is_written_again(tmp_path: Path, column: str, damage: str) -> None:
    source = put_scans(tmp_path / "in", "a")
    (record,) = build(source, tmp_path / "cohort")
    path = tmp_path / "cohort" / getattr(record, column)
    whole = path.read_bytes()
    path.write_bytes({"emptied": b"", "cut": whole[:-1], "changed": whole[:-1] + bytes([whole[-1] ^ 1])}[damage])
    build(source, tmp_path / "cohort")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", ["", '{"scan_id": "sub-a', "null", "[]", "{}"])
def test_a_damaged_record_is_made_again(tmp_path: Path, content: str) -> None:
    source = put_scans(tmp_path / "in", "a")
    before = build(source, tmp_path / "cohort")
    (path,) = (tmp_path / "cohort" / "records").iterdir()
    path.write_text(content)
    assert untimed(build(source, tmp_path / "cohort")) == untimed(before)


@pytest.mark.parametrize("content", ["", '{"complete": tr', "[]", "{}"])
def test_a_damaged_description_is_named_and_written_again(tmp_path: Path, content: str) -> None:
    source, cohort = put_scans(tmp_path / "in", "a"), tmp_path / "cohort"
    build(source, cohort)
    (cohort / "cohort.json").write_text(content)
    with pytest.raises(DamagedFileError, match="run the same `anomaly ingest` again"):
        read_cohort(cohort)
    build(source, cohort)
    assert read_cohort(cohort)["complete"]


@pytest.mark.parametrize("jobs", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_folder_that_cannot_be_written_stops_the_build_and_keeps_what_is_done(tmp_path: Path, jobs: int) -> None:
    source, cohort = put_scans(tmp_path / "in", "a"), tmp_path / "cohort"
    build(source, cohort)
    put_scans(source, "b", "c")
    (cohort / "volumes" / "sub-a_T1w.nii").unlink()
    (cohort / "volumes").rmdir()
    (cohort / "volumes").write_text("a file")
    with pytest.raises(OutputError, match="a file is where a folder should be"):
        build(source, cohort, jobs=jobs)
    (cohort / "volumes").unlink()
    assert statuses(build(source, cohort)) == {"a": "accepted", "b": "accepted", "c": "accepted"}


def test_current_values_of_the_manifest_are_written_to_earlier_records(tmp_path: Path) -> None:
    source, log_folder = put_scans(tmp_path / "in", "a"), tmp_path / "log_folder"
    build(source, tmp_path / "cohort", log_folder=log_folder)
    (tmp_path / "manifest.csv").write_text("path,group,split\nin/sub-a_T1w.nii.gz,healthy,train\n")
    (record,) = build(tmp_path / "manifest.csv", tmp_path / "cohort", log_folder=log_folder)
    assert (record.group, record.split) == ("healthy", "train")
    assert n_times_prepared(log_folder) == {"a": 1}


def test_the_volume_of_a_scan_that_is_now_refused_is_removed(tmp_path: Path) -> None:
    source = put_scans(tmp_path / "in", "a")
    (before,) = build(source, tmp_path / "cohort")
    (source / "sub-a_T1w.nii.gz").write_text("broken")
    build(source, tmp_path / "cohort")
    assert not (tmp_path / "cohort" / before.volume).exists()
    assert not (tmp_path / "cohort" / before.mask).exists()


def test_records_are_yielded_one_by_one(tmp_path: Path) -> None:
    source = put_scans(tmp_path / "in", *"abcdef")
    records = build_cohort(discover([source]), FakeChain(FakeSettings()), tmp_path / "cohort", jobs=0, qc=LENIENT)
    first = next(records)
    assert (tmp_path / "cohort" / first.volume).is_file()
    assert len(list((tmp_path / "cohort" / "records").iterdir())) == 1
    assert not (tmp_path / "cohort" / "manifest.parquet").exists()
    records.close()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_caller_that_stops_early_keeps_the_finished_scans(tmp_path: Path) -> None:
    source, log_folder = put_scans(tmp_path / "in", *"abcdef"), tmp_path / "log_folder"
    log_folder.mkdir()
    chain = FakeChain(FakeSettings(), log_folder)
    records = build_cohort(discover([source]), chain, tmp_path / "cohort", jobs=1, qc=LENIENT)
    next(records)
    records.close()  # type: ignore[attr-defined]
    done = set(n_times_prepared(log_folder))
    list(build_cohort(discover([source]), chain, tmp_path / "cohort", jobs=1, qc=LENIENT))
    assert all(count == 1 for name, count in n_times_prepared(log_folder).items() if name in done)


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "cohort" / "volumes" / ".123.partial.sub-a_T1w.nii"
    left.parent.mkdir(parents=True)
    left.touch()
    build(put_scans(tmp_path / "in", "a"), tmp_path / "cohort")
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("sent_signal", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_an_interrupted_build_continues_to_the_same_result(tmp_path: Path, sent_signal: signal.Signals) -> None:
    source, log_folder, cohort = put_scans(tmp_path / "in", *"abcdef"), tmp_path / "log_folder", tmp_path / "cohort"
    log_folder.mkdir()
    process = _build_in_another_process(source, cohort, log_folder)
    _wait_for(lambda: len(list((cohort / "records").glob("*.json"))) >= 2)
    process.send_signal(sent_signal)
    process.wait(30)
    assert not (cohort / "manifest.parquet").exists()
    if sent_signal is signal.SIGKILL:
        time.sleep(1)  # workers notice that their parent is gone
    before = dict(n_times_prepared(log_folder))
    done = {json.loads(p.read_text())["scan_id"] for p in (cohort / "records").glob("*.json")}
    continued = build(source, cohort, log_folder=log_folder, seconds=0.3)
    again = {
        f"sub-{name}_T1w" for name, count in n_times_prepared(log_folder).items() if count > before.get(name, 0)
    }
    assert not done & again
    assert untimed(continued) == untimed(build(source, tmp_path / "straight", seconds=0.3))


def _build_in_another_process(source: Path, cohort: Path, log_folder: Path) -> subprocess.Popen[bytes]:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by background jobs of a shell\n"
        "from pathlib import Path\n"
        "from anomaly.cohort.build import build_cohort\n"
        "from anomaly.core.volume import Modality\n"
        "from anomaly.io.discover import discover\n"
        "from tests.cohort.factory import *\n"
        "if __name__ == '__main__':\n"
        f"    chain = FakeChain(FakeSettings(seconds=0.3), Path({str(log_folder)!r}))\n"
        f"    scans = discover([{str(source)!r}])\n"
        f"    list(build_cohort(scans, chain, Path({str(cohort)!r}), jobs=1, modality=Modality.T1W, qc=LENIENT))\n"
    )
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)


def _wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_cohort_json_describes_the_preparation(tmp_path: Path) -> None:
    build(put_scans(tmp_path / "in", "a", "refuse"), tmp_path / "cohort")
    cohort = read_cohort(tmp_path / "cohort")
    assert cohort["complete"]
    assert cohort["chain"] == {"gain": 2.0, "seconds": 0.0}
    assert cohort["grid"]["shape"] == [12, 14, 10]
    assert cohort["scans"] == {"accepted": 1, "refused": 1}
    assert cohort["versions"]["numpy"] == np.__version__


def test_a_folder_without_a_cohort_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="anomaly ingest"):
        read_cohort(tmp_path)


def test_nothing_in_a_cohort_of_dicom_identifies_the_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "DOE_JANE_4711", make_series(8))
    broken = make_series(8, series="broken")
    broken[2].PixelData = b"Doe^Jane"
    write_series(tmp_path / "in" / "DOE_JANE_4711" / "b", broken)
    records = build(tmp_path / "in", tmp_path / "cohort")
    assert sorted(r.status.value for r in records) == ["accepted", "refused"]
    written = " ".join(str(p.relative_to(tmp_path)) for p in (tmp_path / "cohort").rglob("*"))
    written += " ".join(p.read_text() for p in (tmp_path / "cohort").rglob("*.[jt]s*"))
    assert not any(word in written.lower() for word in ("doe", "jane", "4711", "19700101"))
    assert read_manifest(tmp_path / "cohort")["source"].str.startswith("../in#sub-").all()
