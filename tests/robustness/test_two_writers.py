"""Commands that write the same folder at the same time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from anomaly.calibration.record import load, records
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import Trained

pytestmark = pytest.mark.slow


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "anomaly", *map(str, arguments)], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_calibrations_at_once_both_survive(trained: Trained, tmp_path: Path) -> None:
    model = shutil.copytree(trained.model, tmp_path / "model")
    before = {record.calibration_id for record in records(model)}
    processes = [
        start("calibrate", model, "--cohort", trained.holdout, "--alpha", alpha, "--reason", "at once", "-q")
        for alpha in (0.2, 0.3)
    ]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    made = [record for record in records(model) if record.calibration_id not in before]
    assert {record.alpha for record in made} == {0.2, 0.3}
    assert all(len(load(model, record.calibration_id).reference) == 24 for record in made)
    table = pd.read_parquet(model / "reference_scores.parquet")
    assert table["calibration_id"].nunique() == len(before) + 2


def test_of_two_commands_on_a_new_folder_one_writes_and_the_other_says_so(trained: Trained, tmp_path: Path) -> None:
    arguments = ("score", trained.model, trained.holdout, "-o", tmp_path / "run", "-q")
    processes = [start(*arguments) for _ in range(2)]
    ended = {process.pid: (process.communicate(timeout=300)[1], process.returncode) for process in processes}
    codes = sorted(code for _, code in ended.values())
    assert codes in ([0, 4], [0, 0])  # both are done if the second started after the first had ended
    for error, code in ended.values():
        assert code == 0 or "is being written by" in error
    assert len(pd.read_parquet(tmp_path / "run" / "scores.parquet")) == 24
