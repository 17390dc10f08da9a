"""Interrupts end a program, and worker processes end together with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly.core.processes import EXIT_OF_SIGNAL, Interrupted, exit_code_of, worker_pool

REPOSITORY = Path(__file__).resolve().parents[2]

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

INTERRUPTED = """
import sys, time
from pathlib import Path
from anomaly.core.processes import exit_code_of, interrupt_on_signals

interrupt_on_signals()
try:
    Path({file!r}).write_text("ready")
    time.sleep(60)
except KeyboardInterrupt as error:
    Path({file!r}).write_text("finishing")
    time.sleep({seconds})
    sys.exit(exit_code_of(error))
"""

POOL = """
import os, subprocess, time
from pathlib import Path
from tempfile import TemporaryDirectory
from anomaly.core.processes import interrupt_on_signals, worker_pool

def work(file):
    with TemporaryDirectory() as folder:
        started = subprocess.Popen(["sleep", "60"])
        Path(file).write_text(f"{{os.getpid()}} {{started.pid}}")
        started.wait()

if __name__ == "__main__":
    interrupt_on_signals()
    try:
        with worker_pool(1) as pool:
            pool.submit(work, {file!r}).result()
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_the_program_which_ends_with_the_code_of_the_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = _start(INTERRUPTED, tmp_path / "state", seconds=0)
    program.send_signal(number)
    assert program.wait(30) == EXIT_OF_SIGNAL + number
    assert (tmp_path / "state").read_text() == "finishing"


def test_a_second_signal_ends_the_program_at_once(tmp_path: Path) -> None:
    program = _start(INTERRUPTED, tmp_path / "state", seconds=60)
    program.send_signal(signal.SIGINT)
    _wait_until(lambda: (tmp_path / "state").read_text() == "finishing")
    began = time.monotonic()
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == EXIT_OF_SIGNAL + signal.SIGTERM
    assert time.monotonic() - began < 5


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path: Path) -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + INTERRUPTED
    program = _start(ignoring, tmp_path / "state", seconds=0)
    program.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert program.poll() is None
    program.send_signal(signal.SIGINT)
    assert program.wait(30) == EXIT_OF_SIGNAL + signal.SIGINT


def test_the_exit_code_of_an_interrupt_is_that_of_a_shell() -> None:
    assert exit_code_of(KeyboardInterrupt()) == 130
    assert exit_code_of(Interrupted(signal.SIGINT)) == 130
    assert exit_code_of(Interrupted(signal.SIGTERM)) == 143


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_terminal_ends_workers_and_what_they_started_without_a_word(
    tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "pids"
    script, temporary = tmp_path / "pool.py", tmp_path / "temporary"
    temporary.mkdir()
    script.write_text(POOL.format(file=str(file)))
    program = subprocess.Popen(
        [sys.executable, str(script)], env={**_environment(), "TMPDIR": str(temporary)},
        start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _wait_until(lambda: file.is_file() and len(file.read_text().split()) == 2)
    began = time.monotonic()
    os.killpg(program.pid, number)  # as a terminal sends it: to all processes of the group
    assert program.communicate(timeout=30) == ("interrupted\n", "")
    assert time.monotonic() - began < 5
    _wait_until(lambda: not any(_is_running(int(pid)) for pid in file.read_text().split()))
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_an_error_in_the_block_ends_running_tasks_at_once() -> None:
    began = time.monotonic()

    def fail_while_workers_run() -> None:
        with worker_pool(1) as pool:
            pool.submit(abs, -1).result()
            pool.submit(time.sleep, 60)
            raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        fail_while_workers_run()
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_caller_that_stops_early_waits_for_running_tasks(tmp_path: Path) -> None:
    def results() -> Iterator[int]:
        with worker_pool(1) as pool:
            yield pool.submit(abs, -1).result()
            pool.submit(_sleep_and_write, tmp_path / "done")
            time.sleep(0.2)
            yield 2

    found = results()
    assert [next(found), next(found)] == [1, 2]
    found.close()
    assert (tmp_path / "done").is_file()


def _sleep_and_write(path: Path) -> None:
    time.sleep(0.5)
    path.touch()


def _start(code: str, file: Path, **values: object) -> subprocess.Popen[bytes]:
    program = subprocess.Popen([sys.executable, "-c", code.format(file=str(file), **values)], env=_environment())
    _wait_until(lambda: file.is_file() and file.read_text() == "ready")
    return program


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


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
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(file=str(file))], env=_environment())
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
