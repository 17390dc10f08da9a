"""Atomic writes, JSON and hashes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from anomaly.core import files
from anomaly.core.errors import DamagedFileError, OutputError
from anomaly.core.files import (
    atomic_path,
    is_running,
    make_folder,
    read_json,
    read_json_if_whole,
    remove_orphans,
    sha256_of_voxels,
    write_json,
    write_text,
)


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_json(path, {"old": 1})

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()

    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": float("nan")})


def test_numpy_values_are_written_as_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"n": np.int64(3), "x": np.float32(0.5), "a": np.arange(2), "p": tmp_path})

    assert read_json(tmp_path / "a.json") == {"n": 3, "x": 0.5, "a": [0, 1], "p": str(tmp_path)}


def test_a_negative_zero_in_the_affine_does_not_change_the_hash() -> None:
    voxels, negative = np.ones((2, 2, 2)), np.eye(4)
    negative[0, 1] = -0.0

    assert sha256_of_voxels(voxels, negative) == sha256_of_voxels(voxels, np.eye(4))


def test_the_hash_depends_on_values_and_affine_but_not_on_the_data_type() -> None:
    voxels = np.arange(24).reshape(2, 3, 4)

    assert sha256_of_voxels(voxels.astype(np.uint8), np.eye(4)) == sha256_of_voxels(voxels.astype(float), np.eye(4))
    assert sha256_of_voxels(voxels, np.eye(4)) != sha256_of_voxels(voxels, 2 * np.eye(4))
    assert sha256_of_voxels(voxels, np.eye(4)) != sha256_of_voxels(voxels + 1, np.eye(4))


def write_and_fail(path: Path, error: Exception) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space on that disk, then run the same command again: it continues"),
        (errno.EDQUOT, "free space on that disk"),
        (errno.EROFS, "make the folder writable or give another one"),
        (errno.EACCES, "make the folder writable or give another one"),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_that_says_what_to_do(
    tmp_path: Path, number: int, remedy: str
) -> None:
    with pytest.raises(OutputError, match=remedy) as found:
        write_and_fail(tmp_path / "table.tsv", OSError(number, os.strerror(number)))
    assert f"cannot write {tmp_path / 'table.tsv'}: {os.strerror(number)}" in str(found.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_while_a_file_is_copied_from_another_folder(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere/a.safetensors", None, "b.safetensors")
    with pytest.raises(OutputError, match="free space"):
        write_and_fail(tmp_path / "a.safetensors", error)


@pytest.mark.parametrize("error", [RuntimeError("writer failed"), OSError("10 requested and 3 written")])
def test_the_reason_that_a_library_left_out_is_asked_for_again(tmp_path: Path, error: Exception) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "a.npy") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            raise error

    with pytest.raises(OutputError, match="No space left on device; free space"):
        write()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENAMETOOLONG, "File name too long"),
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/member.safetensors"),
        RuntimeError("a grid that does not fit"),
        OSError("an image that cannot be identified"),
    ],
)
def test_an_error_that_concerns_one_file_alone_stays_as_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as found:
        write_and_fail(tmp_path / "table.tsv", error)
    assert found.value is error


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for folder in (tmp_path / "run", tmp_path / "run" / "sub-01_T1w"):
        with pytest.raises(OutputError, match="a file is where a folder should be"):
            write_text(folder / "score.json", "{}")
        with pytest.raises(OutputError, match="cannot write"):
            make_folder(folder)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_of_the_umask_whatever_writes_them(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "card.md", "text")
        with atomic_path(tmp_path / "weights.safetensors") as temporary:
            save_file({"weights": np.zeros(3)}, temporary)  # gives 0600 by itself
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, bool]] = []
    path, real = tmp_path / "score.json", os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.is_file()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(path, {"score": 1})
    assert synced == [(False, False), (True, True)]


def test_a_file_system_that_cannot_sync_folders_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "a.json", {"n": 1})
    assert read_json(tmp_path / "a.json") == {"n": 1}


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (b"", "it is empty"),
        (b'{"n": 1', "not JSON"),
        (b"\x00" * 40, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "named values"),
        (b"null", "named values"),
    ],
)
def test_damaged_json_is_named_with_a_remedy(tmp_path: Path, content: bytes, damage: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"run.json is damaged: .*{damage}.*; score again"):
        read_json(path, "score again")
    assert read_json_if_whole(path) is None


def test_missing_json_that_can_be_made_again_is_none(tmp_path: Path) -> None:
    assert read_json_if_whole(tmp_path / "report.json") is None
    write_json(tmp_path / "report.json", {"n": 1})
    assert read_json_if_whole(tmp_path / "report.json") == {"n": 1}


def test_only_temporary_files_without_a_writer_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    here, living = files._host(), os.getpid()
    old = time.time() - 2 * files.OLD_SECONDS
    folder = tmp_path / "run" / "sub-01_T1w"
    folder.mkdir(parents=True)
    ages = {
        f".{here}-{ended.pid}.partial.a.npz": time.time(),
        f".{ended.pid}.partial.b.npz": time.time(),  # as earlier versions named them
        f".{here}-{living}.partial.c.npz": old,
        f".abcdef-{living}.partial.d.npz": old,
        f".{here}-{living}.partial.kept.npz": time.time(),
        f".abcdef-{ended.pid}.partial.kept.npz": time.time(),  # of another computer
        ".notes.partial.kept.txt": old,
        "kept.partial.npz": old,
    }
    for name, modified in ages.items():
        (folder / name).touch()
        os.utime(folder / name, (modified, modified))

    remove_orphans(tmp_path)

    assert {path.name for path in folder.iterdir()} == {name for name in ages if "kept" in name}


def test_a_process_runs_until_it_has_ended() -> None:
    assert is_running(os.getpid())
    assert is_running(1)
    assert not is_running(2**40)
