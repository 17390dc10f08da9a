"""Kill commands at the n-th file operation, run them again, and compare with the result of an undisturbed run.

::

    python -m tests.robustness.kill_matrix --kills 100 --seed 1

Every kill starts from the same inputs, in a process that is forked after all imports, so that a kill takes about a
second. A file operation is the creation, renaming or removal of a file, or the making of a folder. Times and random
salts, and what is made from them, are not compared.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.audit import verify
from pipelines.calibrate import calibrate
from pipelines.cli import app
from pipelines.score import ScoreRequest, score
from pipelines.train import train
from tests.conftest import REPOSITORY, without_worker_processes
from tests.pipelines.cohorts import make_cohort, write_config

VOLATILE_KEYS = re.compile(
    r"seconds|_at$|^at$|^command$|calibration_id|_sha256$|^versions$|^hashes$|^model_id$|^salt$|^subjects$"
)
VOLATILE_COLUMNS = ["calibration_id", "numbers"]
VOLATILE_FILES = re.compile(r"audit\.jsonl$|MODEL_CARD\.md$|/__pycache__/")
HASH_LISTS = {"files.json", "pages.json"}  # of files that are compared themselves
CALIBRATION_ID = re.compile(r"cal-\w+-[0-9a-f]{8}")
FILE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
RAW = ("mr/sub-01/anat/sub-01_T1w.nii.gz", "mr/sub-02/anat/sub-02_T1w.nii.gz", "refuse/constant_T1w.nii.gz")

IMPORTED_BY_COMMANDS = (
    "pipelines.evaluate", "pipelines.ensemble", "pipelines.ingest", "pipelines.report", "anomaly.reports.case",
    "anomaly.reports.viewer", "anomaly.reports.worklist",
)  # fmt: skip
"""Imported before the processes are forked, which then need not do it."""

COMMANDS: dict[str, list[str]] = {
    "ingest": ["raw", "-o", "output", "--preprocessing", "t1w-4mm", "--jobs", "1", "-q"],
    "train": ["--config", "atlas.yaml", "--cohort", "training", "-o", "output", "-q"],
    "ensemble": ["atlas", "intensity", "-o", "output"],
    "calibrate": ["intensity", "--cohort", "holdout", "--alpha", "0.2", "--reason", "kills", "-q"],
    "score": ["atlas", "new", "-o", "output", "--jobs", "1", "-q"],
    "report": ["run", "--jobs", "1", "-q"],
    "evaluate": ["run", "--labels", "labels.tsv", "-q"],
}
"""The arguments of each command, in a folder that :func:`make_inputs` filled."""


SEALED = {
    "train": "output", "ensemble": "output", "calibrate": "intensity", "score": "output", "report": "run",
    "evaluate": "run",
}  # fmt: skip
"""The folder that `anomaly audit verify` must verify after each command."""


@dataclass(frozen=True)
class Kill:
    """A command, and the number of the file operation before which it is killed, from 1."""

    verb: str
    operation: int


def make_inputs(folder: Path) -> None:
    """Write what the commands read: raw scans, cohorts, models, a run and its labels."""
    for name in RAW:
        (folder / "raw").mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / "sample_data" / name, folder / "raw")
    training = make_cohort(folder / "training", range(15))
    holdout = make_cohort(folder / "holdout", range(100, 106))
    new = make_cohort(folder / "new", [200, 201])
    for family in ("atlas", "intensity"):
        train(write_config(folder / f"{family}.yaml", family), training, folder / family)
    calibrate(folder / "atlas", holdout, [0.2], "inputs")
    score(ScoreRequest(model=folder / "atlas", sources=(new,), output=folder / "run", jobs=1))
    rows = [f"{path.name}\t{number}\t" for number, path in enumerate(sorted((folder / "run").glob("sub-*")))]
    (folder / "labels.tsv").write_text("\n".join(["scan_id\tlabel\tmask", *rows]) + "\n")


def in_a_process(work: Callable[[], None], log: Path) -> int:
    """Run a function in a forked process, with its output in a log, and return the exit code."""

    def run() -> None:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode or 0


def run_command(verb: str, folder: Path, operation: int = 0, count: Path | None = None) -> None:
    """Run a command in a folder; kill this process before a file operation, or write how many there were."""
    os.chdir(folder)
    done = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _writes(event, arguments, folder) and next(done) == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        with without_worker_processes():
            app([verb, *COMMANDS[verb]])
    finally:
        if count is not None:
            count.write_text(str(next(done)))


def _writes(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, str | os.PathLike) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
        return _is_below(path, folder)
    return event in FILE_EVENTS and _is_below(arguments[0], folder)


def _is_below(path: Any, folder: Path) -> bool:
    return str(folder) in os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - pathlib is too slow for a hook


def snapshot(folder: Path) -> dict[str, Any]:
    """Return what a command left, by path, without what depends on the time."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not VOLATILE_FILES.search(name):
            found[CALIBRATION_ID.sub("cal", name)] = _comparable(path)
    return found


def _comparable(path: Path) -> Any:
    if path.name in HASH_LISTS:
        return sorted(json.loads(path.read_text()))
    if path.suffix == ".json":
        return _stable(json.loads(path.read_text()))
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        table = table.drop(columns=[name for name in VOLATILE_COLUMNS if name in table])
        return table.map(str).drop_duplicates().to_dict("records")
    if path.suffix in {".tsv", ".md"}:
        return re.sub(r'"+seconds_\w+"+: [\d.e-]+', "", CALIBRATION_ID.sub("cal", path.read_text()))
    return path.read_bytes()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if not VOLATILE_KEYS.search(key)}
    return [_stable(item) for item in value] if isinstance(value, list) else value


class KillMatrix:
    """Inputs, the undisturbed results, and the number of file operations of each command."""

    def __init__(self, folder: Path, verbs: list[str]) -> None:
        self.inputs, self.work, self.log = folder / "inputs", folder / "work", folder / "log.txt"
        self.verbs = verbs
        for module in IMPORTED_BY_COMMANDS:
            importlib.import_module(module)
        if in_a_process(lambda: make_inputs(self.inputs), self.log):
            raise RuntimeError(f"the inputs could not be made:\n{self.log.read_text()[-3000:]}")
        count = folder / "count.txt"
        self.expected, self.operations = {}, {}
        for verb in verbs:
            self.expected[verb] = self._result(verb, count=count)
            self.operations[verb] = int(count.read_text()) - 1
            if self.expected[verb].get("audit") is False:
                raise RuntimeError(f"what {verb} leaves is not verified")

    def kills(self, number: int, seed: int) -> Iterator[Kill]:
        """Yield kills at random operations, in turn for each command."""
        rng = np.random.default_rng(seed)
        for verb in itertools.islice(itertools.cycle(self.verbs), number):
            yield Kill(verb, int(rng.integers(1, self.operations[verb] + 1)))

    def differences(self, kill: Kill) -> list[str]:
        """Kill a command, run it again, and return the files that differ from the undisturbed result."""
        found, expected = self._result(kill.verb, kill.operation), self.expected[kill.verb]
        return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))

    def _result(self, verb: str, operation: int = 0, count: Path | None = None) -> dict[str, Any]:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.inputs, self.work)
        if operation:
            code = in_a_process(lambda: run_command(verb, self.work, operation), self.log)
            if code != -signal.SIGKILL:
                raise RuntimeError(f"{verb} ended with {code} before operation {operation}")
        in_a_process(lambda: run_command(verb, self.work, count=count), self.log)
        found = snapshot(self.work)
        if verb in SEALED:
            found["audit"] = verify(self.work / SEALED[verb])["verified"]
        return found


def main() -> int:
    """Run the matrix, print every kill after which the result differs, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verb", action="append", choices=list(COMMANDS))
    parser.add_argument("--operation", type=int, help="instead of a random one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        matrix = KillMatrix(Path(folder), options.verb or list(COMMANDS))
        sys.stdout.write(f"file operations: {matrix.operations}\n")
        kills = list(matrix.kills(options.kills, options.seed))
        if options.operation:
            kills = [Kill(verb, options.operation) for verb in matrix.verbs]
        n_different = 0
        for kill in kills:
            if different := matrix.differences(kill):
                n_different += 1
                sys.stdout.write(f"{kill.verb} killed before operation {kill.operation}: {', '.join(different)}\n")
        sys.stdout.write(f"{len(kills)} kills, {n_different} with another result\n")
    return int(n_different > 0)


if __name__ == "__main__":
    sys.exit(main())
