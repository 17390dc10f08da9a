"""The command score, interrupted while workers prepare scans and while a network runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.pipelines.cohorts import make_cohort
from tests.pipelines.conftest import Trained

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 120.0
MAX_SECONDS_TO_END = 15.0  # far less on an idle machine
SAID = "anomaly: interrupted; finished results are saved, run the same command again to continue\n"

SLOW_NETWORK = """
import sys, time
from pathlib import Path
from anomaly.inference.model import Model
from pipelines.cli import main

infer = Model.infer

def infer_slowly(self, scan):
    if "201" in scan.scan_id:
        Path({mark!r}).touch()
        time.sleep(600)
    return infer(self, scan)

Model.infer = infer_slowly
main()
"""


def score(model: Path, source: Path, run: Path, program: list[str]) -> subprocess.Popen[str]:
    arguments = ["score", str(model), str(source), "-o", str(run), "--jobs", "2", "--device", "cpu", "-q"]
    return subprocess.Popen(
        [sys.executable, *program, *arguments], cwd=REPOSITORY, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_the_command_within_seconds(
    trained: Trained, sample_data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = score(trained.model, sample_data / "mr", tmp_path / "run", ["-m", "anomaly"])
    wait_for(lambda: len(children(process)) >= 3, process)  # two workers, and the process that counts semaphores
    workers, began = children(process), time.monotonic()
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, error) == (128 + number, SAID)
    assert time.monotonic() - began < MAX_SECONDS_TO_END
    end = time.monotonic() + MAX_SECONDS_TO_END
    while any(map(is_running, workers)):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not list(tmp_path.rglob(".*.partial.*"))


def test_a_command_whose_network_runs_ends_and_keeps_the_scans_before(trained: Trained, tmp_path: Path) -> None:
    cohort, mark = make_cohort(tmp_path / "cohort", [200, 201, 202]), tmp_path / "network runs"
    process = score(trained.model, cohort, tmp_path / "run", ["-c", SLOW_NETWORK.format(mark=str(mark))])
    wait_for(mark.exists, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, error) == (143, SAID)
    assert time.monotonic() - began < MAX_SECONDS_TO_END
    result = tmp_path / "run" / "sub-200_T1w" / "score.json"
    written = result.stat().st_mtime_ns
    continued = score(trained.model, cohort, tmp_path / "run", ["-m", "anomaly"])
    continued.communicate(timeout=PATIENCE_SECONDS)
    assert continued.returncode == 0
    assert result.stat().st_mtime_ns == written
    assert (tmp_path / "run" / "scores.tsv").is_file()
