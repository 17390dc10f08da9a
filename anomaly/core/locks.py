"""Let one process at a time write a folder.

A lock belongs to a process: the system releases it when the process ends, even if it was killed. On file systems
without such locks, the library `filelock` uses a file that names the process and the computer instead.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anomaly.core.errors import OutputError
from anomaly.core.files import make_folder, output_error, read_json_if_whole, remove_orphans, write_json
from anomaly.core.provenance import command_line, now

LOCK = ".writer.lock"
WRITER = ".writer.json"
"""Describes the process that holds the lock: its number, computer, command and start."""

MAX_APPEND_SECONDS = 60.0
"""A file is locked for milliseconds; a process that waits longer says so and ends."""


@contextmanager
def only_writer(folder: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Be the only process that writes a folder, and remove what killed ones left unfinished there.

    Parameters
    ----------
    folder
        Made if it does not exist, and removed again if it is empty at the end.
    on_wait
        Called with a message if another process writes the folder. This process then waits for its turn.

    Raises
    ------
    OutputError
        Another process writes the folder and ``on_wait`` is None, or the folder cannot be written.
    """
    with (
        _made(folder),
        _locked(folder / LOCK, lambda: _wait_or_refuse(folder, on_wait)),
        _described(folder / WRITER),
    ):
        remove_orphans(folder)
        yield


@contextmanager
def appending(path: Path) -> Iterator[None]:
    """Read and write a file in the block while no other process does the same.

    Raises
    ------
    OutputError
        Another process does not finish, or the folder cannot be written.
    """
    make_folder(path.parent)
    with _locked(path.with_name(f".{path.name}.lock"), lambda: MAX_APPEND_SECONDS):
        yield


@contextmanager
def _locked(path: Path, when_held: Callable[[], float]) -> Iterator[None]:
    """Hold the lock of a file in the block; if another process holds it, wait the seconds of ``when_held``."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            lock.acquire(when_held())
    except Timeout as error:
        raise OutputError(f"{path} is locked by another process; wait until it ends, then try again") from error
    except OSError as error:
        raise output_error(path.parent, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # who waits for it notices, and locks a new file
        lock.release()


def _wait_or_refuse(folder: Path, on_wait: Callable[[str], None] | None) -> float:
    """Return how many seconds to wait for a folder that another process writes: without end, -1."""
    found = read_json_if_whole(folder / WRITER) or {}
    who = "process {pid} on {host} since {since} ({command})".format_map(found) if found else "another process"
    if on_wait is None:
        raise OutputError(
            f"{folder} is being written by {who}; wait until it ends or give another folder, then run the command "
            "again"
        )
    on_wait(f"waiting: {folder} is being written by {who}")
    return -1


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; remove it and the parents that were made for it after the block, if they are empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """Describe this process in a file during the block."""
    write_json(path, {"pid": os.getpid(), "host": platform.node(), "command": command_line(), "since": now()})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
