"""Read mutants of scans and tables, and judge what the readers make of them.

A mutant must be read as it was, refused with a reason, or marked with a warning. It must not crash, hang, or
silently be read as something else.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np

from anomaly.core.errors import InputError, ScanRefusedError
from anomaly.core.volume import Volume
from anomaly.io.discover import discover
from tests.robustness.mutations import Mutation, Rng

MAX_SECONDS = 20  # a reader that takes longer hangs
MAX_SHIFT_MM = 0.2  # a tenth of a voxel: the difference of two geometries in one file that is not yet marked


class Outcome(StrEnum):
    """What became of a mutant."""

    SAME = "read as it was"
    REFUSED = "refused"
    MARKED = "read, with a warning"
    EXPLAINED = "read otherwise, undetectable"
    SILENT = "read otherwise, silently"
    CRASHED = "crashed"
    HUNG = "hung"


class Target(NamedTuple):
    """A kind of input that is mutated.

    Parameters
    ----------
    name
        What it is called in the table.
    make
        Writes the input into an empty folder.
    mutations
        Each changes one file of the folder in place; one of them is chosen for a mutant.
    explanation
        Returns why a mutation that changes the scan cannot be noticed; ``""`` if it can.
    source
        The file of the folder that is given to the reader; ``""`` for the folder.
    """

    name: str
    make: Callable[[Path], None]
    mutations: tuple[Callable[[Path, Rng], Mutation], ...]
    explanation: Callable[[Path, Mutation], str]
    source: str = ""


@dataclass(frozen=True)
class Result:
    """One mutant and what became of it."""

    target: str
    seed: int
    mutation: str
    outcome: Outcome
    detail: str = ""


def run_mutants(target: Target, seeds: range) -> list[Result]:
    """Make a mutant for each seed and read it."""
    with tempfile.TemporaryDirectory() as name:
        original = Path(name, "original")
        original.mkdir()
        target.make(original)
        truth = _read_all(original / target.source)
        return [_run_mutant(target, seed, original, truth, Path(name, str(seed))) for seed in seeds]


def _run_mutant(target: Target, seed: int, original: Path, truth: list[Volume], folder: Path) -> Result:
    rng = np.random.default_rng(seed)
    shutil.copytree(original, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    mutation = target.mutations[int(rng.integers(len(target.mutations)))](path, rng)
    try:
        outcome, detail = judge(folder / target.source, truth)
        if outcome is Outcome.SILENT and (reason := target.explanation(path, mutation)):
            outcome, detail = Outcome.EXPLAINED, reason
    finally:
        shutil.rmtree(folder)
    return Result(target.name, seed, mutation.description, outcome, detail)


def judge(source: Path, truth: list[Volume]) -> tuple[Outcome, str]:
    """Read all scans of a source and compare them with the scans before the mutation."""
    try:
        with time_limit(MAX_SECONDS):
            found = _read_all(source)
    except (ScanRefusedError, InputError) as error:
        return Outcome.REFUSED, str(error)
    except TimeoutError as error:
        return Outcome.HUNG, str(error)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises besides its own errors is a crash
        return Outcome.CRASHED, f"{type(error).__name__}: {error}"
    return _compare(found, truth)


def _read_all(source: Path) -> list[Volume]:
    """Read every scan of a source; raise the refusal if all are refused."""
    volumes, refusals = [], []
    for scan in discover([source]):
        try:
            volumes.append(scan.read())
        except ScanRefusedError as error:
            refusals.append(error)
    if not volumes and refusals:
        raise refusals[0]
    return volumes


def _compare(found: list[Volume], truth: list[Volume]) -> tuple[Outcome, str]:
    changed = [volume for volume in found if not any(_same(volume, original) for original in truth)]
    if not changed:
        return Outcome.SAME, ""
    silent = [volume for volume in changed if not volume.warnings]
    if silent:
        return Outcome.SILENT, f"{silent[0].scan_id}: {_difference(silent[0], truth[0])}"
    return Outcome.MARKED, changed[0].warnings[0].found


def _same(volume: Volume, original: Volume) -> bool:
    """Return whether the voxels are equal and lie where they lay, within what readers take for rounding."""
    if volume.geometry.shape != original.geometry.shape or not np.array_equal(volume.voxels, original.voxels):
        return False
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in original.geometry.shape])))
    shifts = volume.geometry.to_world(corners) - original.geometry.to_world(corners)
    return bool(np.abs(shifts).max() <= MAX_SHIFT_MM)


def _difference(volume: Volume, original: Volume) -> str:
    if volume.geometry.shape != original.geometry.shape:
        return f"shape {volume.geometry.shape}, was {original.geometry.shape}"
    n_voxels = int((volume.voxels != original.voxels).sum())
    shift = np.abs(volume.geometry.affine - original.geometry.affine).max()
    return f"{n_voxels} voxels differ, affine by {shift:.3g}"


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer. Works in the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
