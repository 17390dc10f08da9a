"""Worker processes end together with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import multiprocessing, os, time
from pathlib import Path
from anomaly.core.processes import exit_with_parent

def work(file):
    exit_with_parent()
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=work, args=({file!r},)).start()
    time.sleep(60)
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent, worker = _start_parent_with_worker(tmp_path / "pid")
    assert _is_running(worker)
    parent.kill()
    parent.wait()
    _wait_until(lambda: not _is_running(worker))


def test_a_worker_leaves_interrupts_to_its_parent(tmp_path: Path) -> None:
    parent, worker = _start_parent_with_worker(tmp_path / "pid")
    os.kill(worker, signal.SIGINT)
    time.sleep(0.2)
    assert _is_running(worker)
    parent.kill()
    parent.wait()
    _wait_until(lambda: not _is_running(worker))


def _start_parent_with_worker(file: Path) -> tuple[subprocess.Popen[bytes], int]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(file=str(file))], env=environment)
    _wait_until(lambda: file.is_file() and file.read_text() != "")
    return parent, int(file.read_text())


def _is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended; an ended one may wait for its new parent to reap it."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            pytest.fail("the condition did not become true in time")
        time.sleep(0.02)
