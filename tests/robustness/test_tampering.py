"""Every change of a finished run or model is noticed, and damaged files are named instead of a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.kill_matrix import make_inputs
from tests.robustness.tampering import READERS, read_damaged, tampered

pytestmark = pytest.mark.slow  # trains, calibrates and scores


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.mark.parametrize(("kind", "expected"), [("run", "run.json"), ("atlas", "weights.safetensors")])
def test_every_change_of_every_file_is_noticed(inputs: Path, kind: str, expected: str) -> None:
    found = list(tampered(inputs / kind))
    assert expected in {name for name, _, _ in found}
    assert [(name, change) for name, change, is_noticed in found if not is_noticed] == []


@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_read_or_refused_and_never_crash(inputs: Path, kind: str) -> None:
    outcomes = read_damaged(inputs / kind, READERS[kind], range(40))
    assert set(outcomes) <= {"read", "refused"}
    assert outcomes["refused"] > 0
