"""One process at a time writes a folder."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from anomaly.core.errors import OutputError
from anomaly.core.files import read_json, write_json
from anomaly.core.locks import LOCK, WRITER, appending, only_writer

FORK = multiprocessing.get_context("fork")


def write_until(folder: Path, holds: Event, stop: Event) -> None:
    with only_writer(folder):
        holds.set()
        stop.wait(30)
        (folder / "done").touch()


@contextlib.contextmanager
def another_writer(folder: Path) -> Iterator[tuple[multiprocessing.process.BaseProcess, Event]]:
    """Start a process that writes the folder; it ends when the event is set, at the latest after the block."""
    holds, stop = FORK.Event(), FORK.Event()
    process = FORK.Process(target=write_until, args=(folder, holds, stop))
    process.start()
    assert holds.wait(30)
    yield process, stop
    if process.is_alive():  # setting the event would wait for ever for a killed process
        stop.set()
        process.join()


def test_a_second_process_is_told_who_writes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_writer(folder) as (process, _):
        with (
            pytest.raises(
                OutputError, match=f"is being written by process {process.pid} on .*; wait until it ends"
            ),
            only_writer(folder),
        ):
            pytest.fail("two processes wrote at once")
        assert process.is_alive()
    with only_writer(folder):
        assert read_json(folder / WRITER)["pid"] == os.getpid()


def test_a_process_may_wait_for_its_turn(tmp_path: Path) -> None:
    said: list[str] = []
    with another_writer(tmp_path) as (process, stop):

        def wait(message: str) -> None:
            said.append(message)
            stop.set()

        with only_writer(tmp_path, on_wait=wait):
            assert (tmp_path / "done").is_file()
    assert len(said) == 1
    assert f"process {process.pid}" in said[0]


def test_the_lock_of_a_killed_process_is_taken_over_and_its_unfinished_files_are_removed(tmp_path: Path) -> None:
    with another_writer(tmp_path) as (process, _):
        process.kill()
        process.join()
        left = tmp_path / "sub-01_T1w" / f".{process.pid}.partial.score.json"
        left.parent.mkdir()
        left.touch()
        assert (tmp_path / WRITER).is_file()
        with only_writer(tmp_path):
            assert not left.exists()
            assert read_json(tmp_path / WRITER)["pid"] == os.getpid()


def test_nothing_of_the_lock_is_left(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, WRITER}
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_stays_only_if_something_was_written(tmp_path: Path) -> None:
    def write(folder: Path, name: str = "") -> None:
        with only_writer(folder):
            if name:
                (folder / name).touch()
            raise RuntimeError("later")

    for folder, name in ((tmp_path / "a" / "run", ""), (tmp_path / "b" / "run", "score.json")):
        with pytest.raises(RuntimeError, match="later"):
            write(folder, name)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "b" / "run").iterdir()] == ["score.json"]


def test_a_folder_that_was_there_stays_even_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with only_writer(tmp_path / "run"):
        pass
    assert (tmp_path / "run").is_dir()


def test_a_folder_that_cannot_be_made_or_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match="a file is where a folder should be"), only_writer(tmp_path / "run"):
        pytest.fail("wrote into a file")


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")
def test_a_file_system_without_locks_is_locked_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with another_writer(tmp_path) as (process, _):
        with pytest.raises(OutputError, match=f"written by process {process.pid}"), only_writer(tmp_path):
            pytest.fail("two processes wrote at once")
        process.kill()
        process.join()
        with only_writer(tmp_path, on_wait=lambda _: None):
            assert read_json(tmp_path / WRITER)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def add_one(path: Path, times: int) -> None:
    for _ in range(times):
        with appending(path):
            count = read_json(path)["count"]
            time.sleep(0.001)
            write_json(path, {"count": count + 1})


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    write_json(path, {"count": 0})
    run_at_once(lambda: add_one(path, 10), 3)
    assert read_json(path) == {"count": 30}
    assert list(tmp_path.iterdir()) == [path]


def run_at_once(work: Callable[[], None], number: int) -> None:
    processes = [FORK.Process(target=work) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * number
