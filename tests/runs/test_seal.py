from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from anomaly.core.audit_log import append_entry, hash_files, read_list
from anomaly.core.errors import InputError, OutputError
from anomaly.core.files import write_json
from anomaly.core.results import ScanScore, ScanStatus
from anomaly.runs.layout import PENDING_FILES, SCAN_FILES
from anomaly.runs.seal import check_list, check_results, files_of_scan, note_pending, read_pending, write_hashes

RESULT = ScanScore("a", ScanStatus.SCORED, outputs={"anomaly_map": "a/map.nii.gz"})


def save_result(folder: Path, name: str) -> Path:
    path = folder / name / "score.json"
    write_json(path, asdict(ScanScore(name, ScanStatus.SCORED)))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of one scan."""
    files = files_of_scan(tmp_path, RESULT)
    files[0].parent.mkdir()
    for file in files:
        file.write_text(file.name, encoding="utf-8")
    append_entry(tmp_path, {"verb": "score", "event": "started"})
    write_hashes(tmp_path, SCAN_FILES, hash_files(tmp_path, files), files)
    append_entry(
        tmp_path, {"verb": "score", "event": "finished", "files": hash_files(tmp_path, [tmp_path / SCAN_FILES])}
    )
    return tmp_path


def test_the_files_of_a_scan_are_its_result_outputs_and_volumes(tmp_path: Path) -> None:
    names = [path.relative_to(tmp_path).as_posix() for path in files_of_scan(tmp_path, RESULT)]
    assert names == ["a/score.json", "a/map.nii.gz", "a/a_space-template_volumes.npz"]


def test_an_unchanged_run_passes(run: Path) -> None:
    check_list(run, SCAN_FILES)
    check_results(run, {})
    check_list(run, "other.json")


def test_a_changed_result_or_list_is_refused_by_name(run: Path) -> None:
    save_result(run, "a")
    with pytest.raises(InputError, match=r"1 results that were changed .*\(a/score\.json\)"):
        check_results(run, {})
    check_results(run, hash_files(run, [run / "a" / "score.json"]))
    (run / SCAN_FILES).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"files\.json was changed after it was written"):
        check_list(run, SCAN_FILES)


def test_a_result_that_was_removed_can_be_made_again(run: Path) -> None:
    (run / "a" / "score.json").unlink()
    check_results(run, {})


def test_the_earlier_hash_of_a_file_that_was_not_written_is_kept(run: Path) -> None:
    before = read_list(run, SCAN_FILES)
    (run / "a" / "map.nii.gz").write_text("changed", encoding="utf-8")
    new = run / "b.txt"
    new.write_text("left by an interrupted call", encoding="utf-8")
    write_hashes(run, SCAN_FILES, {"a/score.json": "0"}, [*files_of_scan(run, RESULT), new])
    assert read_list(run, SCAN_FILES) == {**before, "a/score.json": "0", **hash_files(run, [new])}


def test_pending_hashes_count_only_while_a_call_is_interrupted(run: Path) -> None:
    note_pending(run, {"a": "1"})
    assert read_pending(run) == {}
    append_entry(run, {"verb": "score", "event": "started"})
    note_pending(run, {"a": "2", "b": "3"})
    with (run / PENDING_FILES).open("a", encoding="utf-8") as stream:
        stream.write('{"c": "cut')
    note_pending(run, {"d": "4"})
    assert read_pending(run) == {"a": "2", "b": "3", "d": "4"}


def test_a_list_that_was_written_just_before_the_end_is_accepted(run: Path) -> None:
    append_entry(run, {"verb": "score", "event": "started"})
    note_pending(run, {"a/score.json": "1"})
    write_hashes(run, SCAN_FILES, {"a/score.json": "1"}, [])
    check_list(run, SCAN_FILES)


def test_a_full_disk_stops_the_run_and_names_the_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=rf"cannot write .*{PENDING_FILES}: No space left"):
        note_pending(run, {"a": "1"})


def test_pending_hashes_are_on_the_disk_before_the_run_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    note_pending(run, {"a": "1"})
    assert sizes == [(run / PENDING_FILES).stat().st_size]


def test_lines_of_pending_hashes_that_were_damaged_are_passed_over(run: Path) -> None:
    append_entry(run, {"verb": "score", "event": "started"})
    note_pending(run, {"a": "1"})
    with (run / PENDING_FILES).open("ab") as stream:
        stream.write(b'\xff\xfe}\n{"b": }\n[1]\n{"c": 2}\n{"d": null}\n7\n')
    note_pending(run, {"e": "3"})
    assert read_pending(run) == {"a": "1", "e": "3"}


def killed_before_the_list_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch, result: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("anomaly.runs.seal.write_text", lambda path, text: None)
        write_hashes(folder, SCAN_FILES, {"a/score.json": result}, files_of_scan(folder, RESULT))


def test_a_kill_just_before_the_list_is_written_leaves_the_earlier_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_entry(run, {"verb": "score", "event": "started"})
    note_pending(run, {"a/score.json": "1"})
    killed_before_the_list_is_written(run, monkeypatch, "1")
    check_list(run, SCAN_FILES)
    write_hashes(run, SCAN_FILES, {"a/score.json": "1"}, files_of_scan(run, RESULT))
    killed_before_the_list_is_written(run, monkeypatch, "2")  # the list is neither the earliest nor the latest
    check_list(run, SCAN_FILES)
    (run / SCAN_FILES).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="was changed after it was written"):
        check_list(run, SCAN_FILES)
    (run / SCAN_FILES).unlink()
    with pytest.raises(InputError, match="was changed after it was written"):
        check_list(run, SCAN_FILES)


def test_a_kill_just_before_the_first_list_is_written_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_entry(tmp_path, {"verb": "score", "event": "started"})
    note_pending(tmp_path, {"a/score.json": "1"})
    killed_before_the_list_is_written(tmp_path, monkeypatch, "1")
    check_list(tmp_path, SCAN_FILES)
    (tmp_path / SCAN_FILES).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="was changed after it was written"):
        check_list(tmp_path, SCAN_FILES)


@pytest.mark.parametrize("content", ["", '{"scan_id": "a"', "[]", '{"scan_id": 7}'])
def test_a_damaged_result_is_no_reason_to_stop(run: Path, content: str) -> None:
    (run / "a" / "score.json").write_text(content, encoding="utf-8")
    check_results(run, {})


def test_a_result_that_no_command_wrote_is_refused_by_name(run: Path) -> None:
    save_result(run, "forged")
    with pytest.raises(InputError, match=r"1 results that were written by no command \(forged/score\.json\)"):
        check_results(run, {})
    check_results(run, {}, replaced=["forged"])
    append_entry(run, {"verb": "score", "event": "started"})
    check_results(run, {})  # the call that was interrupted may have written it


def test_a_run_without_a_sealed_list_may_hold_any_result(tmp_path: Path) -> None:
    save_result(tmp_path, "of an earlier version")
    check_results(tmp_path, {})


def test_a_changed_result_is_no_reason_to_stop_where_it_is_scored_again(run: Path) -> None:
    save_result(run, "a")
    check_results(run, {}, replaced=["a"])
    with pytest.raises(InputError, match="changed after they were written"):
        check_results(run, {}, replaced=["b"])
