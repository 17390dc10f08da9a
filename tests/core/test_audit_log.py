from __future__ import annotations

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anomaly.core.audit_log import (
    AUDIT_LOG,
    Disagreement,
    append_entry,
    disagreements,
    hash_files,
    read_audit_log,
    read_list,
)
from anomaly.core.errors import OutputError
from anomaly.core.files import sha256_of_json


def write_log(folder: Path, *verbs: str) -> Path:
    for verb in verbs:
        append_entry(folder, {"verb": verb})
    return folder / "audit.jsonl"


def lines_of(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines()


def rewrite(log: Path, lines: list[str]) -> None:
    log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def places(folder: Path) -> list[str]:
    return [one.file for one in read_audit_log(folder).disagreements]


def test_each_line_holds_the_hash_of_the_line_before_it_and_of_itself(tmp_path: Path) -> None:
    lines = lines_of(write_log(tmp_path, "a", "b"))
    first, second = map(json.loads, lines)
    assert first["previous"] == ""
    assert second["previous"] == hashlib.sha256(lines[0].encode()).hexdigest()
    assert second.pop("sha256") == sha256_of_json(second)
    assert lines[0] == json.dumps(first, sort_keys=True, separators=(",", ":"))
    log = read_audit_log(tmp_path)
    assert (log.disagreements, log.unchained, len(log.entries)) == ((), 0, 2)
    assert log.head == hashlib.sha256(lines[1].encode()).hexdigest()


@pytest.mark.parametrize("line", [0, 1, 2])
def test_an_edited_line_is_found_wherever_it_is(tmp_path: Path, line: int) -> None:
    log = write_log(tmp_path, "a", "b", "c")
    lines = lines_of(log)
    lines[line] = lines[line].replace('"verb":"', '"verb":"x')
    rewrite(log, lines)
    assert f"audit.jsonl, line {line + 1}" in places(tmp_path)


def test_a_line_with_a_new_hash_of_its_own_is_found_by_the_next(tmp_path: Path) -> None:
    log = write_log(tmp_path, "a", "b")
    lines = lines_of(log)
    entry = {"verb": "x", "previous": ""}
    rewrite(log, [json.dumps({**entry, "sha256": sha256_of_json(entry)}), lines[1]])
    assert places(tmp_path) == ["audit.jsonl, line 2"]


@pytest.mark.parametrize(("kept", "found"), [([1, 2], 1), ([0, 2], 2), ([1, 0, 2], 1), ([0, 0, 1, 2], 2), ([2], 1)])
def test_removed_moved_and_repeated_lines_are_found(tmp_path: Path, kept: list[int], found: int) -> None:
    log = write_log(tmp_path, "a", "b", "c")
    lines = lines_of(log)
    rewrite(log, [lines[i] for i in kept])
    assert f"audit.jsonl, line {found}" in places(tmp_path)


def test_the_removal_of_the_last_lines_is_not_found_by_the_chain(tmp_path: Path) -> None:
    log = write_log(tmp_path, "a", "b")
    noted = read_audit_log(tmp_path).head
    rewrite(log, lines_of(log)[:1])
    found = read_audit_log(tmp_path)
    assert found.disagreements == ()
    assert noted not in found.line_hashes


def test_a_line_without_chain_after_the_chain_has_begun_is_found(tmp_path: Path) -> None:
    log = write_log(tmp_path, "a")
    rewrite(log, [*lines_of(log), '{"verb":"b"}'])
    assert places(tmp_path) == ["audit.jsonl, line 2"] * 2


def test_lines_of_an_earlier_version_are_counted_and_the_last_is_chained(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_text('{"verb": "a"}\n{"verb": "b"}\n', encoding="utf-8")
    write_log(tmp_path, "c")
    log = read_audit_log(tmp_path)
    assert (log.unchained, log.disagreements) == (2, ())
    lines = lines_of(tmp_path / "audit.jsonl")
    rewrite(tmp_path / "audit.jsonl", [lines[0], '{"verb": "x"}', lines[2]])
    assert places(tmp_path) == ["audit.jsonl, line 3"]


def test_a_cut_line_is_found_and_does_not_damage_the_next(tmp_path: Path) -> None:
    log = write_log(tmp_path, "a", "b")
    log.write_bytes(log.read_bytes()[:-20])
    write_log(tmp_path, "c")
    assert places(tmp_path) == ["audit.jsonl, line 2"]
    assert [entry["verb"] for entry in read_audit_log(tmp_path).entries] == ["a", "c"]


def test_commands_that_append_at_once_make_one_chain(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda verb: append_entry(tmp_path, {"verb": str(verb)}), range(40)))
    log = read_audit_log(tmp_path)
    assert (len(log.entries), log.disagreements) == (40, ())


def test_a_folder_without_a_log_has_an_empty_one(tmp_path: Path) -> None:
    log = read_audit_log(tmp_path)
    assert (log.entries, log.head, log.sealed, log.lists, log.interrupted) == ((), "", {}, [], [])


def test_sealed_files_are_those_written_last(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for content in ("one", "two"):
        file.write_text(content, encoding="utf-8")
        sealed = hash_files(tmp_path, [file, tmp_path / "missing.txt"])
        append_entry(tmp_path, {"verb": "score", "files": sealed, "lists": ["files.json"]})
    log = read_audit_log(tmp_path)
    assert log.sealed == {"a.txt": hashlib.sha256(b"two").hexdigest()}
    assert log.lists == ["files.json"]
    assert disagreements(tmp_path, log.sealed) == []
    file.write_text("three", encoding="utf-8")
    changed = hashlib.sha256(b"three").hexdigest()
    assert disagreements(tmp_path, log.sealed) == [Disagreement("a.txt", changed, log.sealed["a.txt"])]
    file.unlink()
    assert disagreements(tmp_path, log.sealed)[0].found == "no such file"
    assert read_list(tmp_path, "files.json") == {}


def test_a_command_that_started_and_did_not_finish_is_named(tmp_path: Path) -> None:
    for verb, event in (("score", "started"), ("score", "finished"), ("score", "started")):
        append_entry(tmp_path, {"verb": verb, "event": event})
    assert read_audit_log(tmp_path).interrupted == ["score"]


def test_a_log_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / AUDIT_LOG).mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        append_entry(tmp_path, {"verb": "score"})


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")
def test_a_file_system_without_locks_can_hold_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    log = write_log(tmp_path, "a", "b")
    assert [entry["verb"] for entry in read_audit_log(tmp_path).entries] == ["a", "b"]
    assert list(tmp_path.iterdir()) == [log]


def test_an_entry_is_on_the_disk_before_the_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    log = write_log(tmp_path, "a")
    assert sizes == [log.stat().st_size]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('{"event":"started"}', "verb"),
        ('{"verb":["score"],"event":"started"}', "verb"),
        ('{"verb":"score","event":{}}', "event"),
        ('{"verb":"score","files":["a"]}', "files"),
        ('{"verb":"score","files":{"a":1}}', "files"),
        ('{"verb":"score","lists":"files.json"}', "lists"),
        ('{"verb":"score","files":null,"lists":[null]}', "files, lists"),
    ],
)
def test_a_line_with_fields_of_another_type_is_a_disagreement(tmp_path: Path, line: str, fields: str) -> None:
    log = write_log(tmp_path, "a")
    rewrite(log, [*lines_of(log), line])
    append_entry(tmp_path, {"verb": "b"})
    found = read_audit_log(tmp_path)
    assert found.disagreements == (Disagreement("audit.jsonl, line 2", f"{fields} of another type", "an entry"),)
    assert (found.sealed, found.lists, found.interrupted, len(found.entries)) == ({}, [], [], 2)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b"7", b"null", b'{"a":', b""])
def test_a_line_that_is_no_entry_is_a_disagreement(tmp_path: Path, line: bytes) -> None:
    log = write_log(tmp_path, "a")
    log.write_bytes(log.read_bytes() + line + b"\n")
    assert "audit.jsonl, line 2" in places(tmp_path)
