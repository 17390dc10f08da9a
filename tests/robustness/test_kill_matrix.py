"""A command that was killed continues to the result of one that was not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.robustness.kill_matrix import COMMANDS, snapshot

N_KILLS = 12


@pytest.mark.slow
def test_commands_that_are_killed_anywhere_continue_to_the_same_result() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.kill_matrix", "--kills", str(N_KILLS), "--seed", "0"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.endswith(f"{N_KILLS} kills, 0 with another result\n"), done.stdout + done.stderr
    operations = {verb: int(count) for verb, count in re.findall(r"'(\w+)': (\d+)", done.stdout)}
    assert set(operations) == set(COMMANDS)
    assert min(operations.values()) > 10


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        ("a.json", {"score": 1.0, "scored_at": "monday"}, {"score": 1.0, "scored_at": "tuesday"}, True),
        ("a.json", {"score": 1.0, "scored_at": "monday"}, {"score": 1.1, "scored_at": "monday"}, False),
        ("calibrations/cal-1-0123abcd.json", {"alpha": 0.1}, {"alpha": 0.2}, False),
        ("a.txt", "one", "two", False),
        ("audit.jsonl", "one", "two", True),
    ],
)
def test_results_are_compared_but_for_their_times(
    tmp_path: Path, name: str, before: object, after: object, same: bool
) -> None:
    for folder, value in (("before", before), ("after", after)):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    assert (snapshot(tmp_path / "before") == snapshot(tmp_path / "after")) is same


def test_a_file_too_many_is_another_result(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    before = snapshot(tmp_path)
    (tmp_path / ".12.partial.a.txt").touch()
    assert snapshot(tmp_path) != before
