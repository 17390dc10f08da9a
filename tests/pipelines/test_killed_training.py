"""A training that is killed or interrupted, as the command line runs it, and is then continued."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from anomaly.bundle.store import load_bundle
from pipelines.train import train
from tests.conftest import REPOSITORY
from tests.pipelines.cohorts import make_cohort, write_config

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 300.0
TRAINING = {"steps": 400, "validate_every": 20, "batch_size": 8, "num_workers": 0}

KILLED_WHILE_WRITING = """
import os, signal
from pathlib import Path
import torch
from pipelines.cli import main

save, checkpoints = torch.save, []

def save_half(content, path, *arguments, **named):
    save(content, path, *arguments, **named)
    if not str(path).endswith("last.ckpt"):
        return
    checkpoints.append(path)
    if len(checkpoints) == 3:
        Path(path).write_bytes(Path(path).read_bytes()[:5000])
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
main()
"""


WITH_SIGTERM_LIKE_CTRL_C = """
import signal
from pipelines.cli import main

signal.signal(signal.SIGTERM, signal.default_int_handler)
main()
"""


def start(
    program: list[str], config: Path, cohort: Path, model: Path, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    verb = ["train", "--config", str(config), "--cohort", str(cohort), "-o", str(model), "--device", "cpu", "-q"]
    return subprocess.Popen([sys.executable, *program, *verb], cwd=REPOSITORY, stderr=stderr)


def write_training(config: Path, **training: int) -> None:
    values = yaml.safe_load(write_config(config, "ae", channels=[8, 16], latent_size=4).read_text())
    config.write_text(yaml.safe_dump(values | {"training": training}))


def wait_for(there: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not there():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_training_killed_within_a_step_and_within_a_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    cohort, config, model = make_cohort(tmp_path / "cohort", range(12)), tmp_path / "ae.yaml", tmp_path / "model"
    write_training(config, **TRAINING)
    checkpoint = model / "training" / "last.ckpt"

    first = start(["-m", "anomaly"], config, cohort, model)
    wait_for(checkpoint.is_file, first)
    time.sleep(0.1)  # some steps later
    first.kill()
    first.wait()
    assert not (model / "metadata.json").exists()

    second = start(["-c", KILLED_WHILE_WRITING], config, cohort, model)
    assert second.wait(PATIENCE_SECONDS) == -9
    assert [path.stat().st_size for path in checkpoint.parent.glob(".*.partial.last.ckpt")] == [5000]

    train(config, cohort, model, device="cpu")
    train(config, cohort, tmp_path / "uninterrupted", device="cpu")
    scores = [load_bundle(folder).metadata["score_mean"] for folder in (model, tmp_path / "uninterrupted")]
    assert scores[0] == scores[1]
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (model, tmp_path / "uninterrupted")]
    assert weights[0] == weights[1]
    assert not list((model / "training").glob("*.ckpt"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_training_ends_soon_with_a_checkpoint_and_says_how_to_continue(
    number: signal.Signals, tmp_path: Path
) -> None:
    cohort, config, model = make_cohort(tmp_path / "cohort", range(4)), tmp_path / "ae.yaml", tmp_path / "model"
    write_training(config, **TRAINING | {"steps": 1_000_000, "validate_every": 1_000_000})
    process = start(["-c", WITH_SIGTERM_LIKE_CTRL_C], config, cohort, model, stderr=subprocess.PIPE)
    wait_for(lambda: list((model / "training").rglob("metrics.csv")), process)
    process.send_signal(number)
    _, messages = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode in {130, 128 + number}
    assert b"run the same command again" in messages
    assert b"Traceback" not in messages
    assert torch.load(model / "training" / "last.ckpt", weights_only=True)["state"]["step"] >= 10
