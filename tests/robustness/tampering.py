"""Change the files of a finished run and of a model, and see whether the change is noticed.

Two questions: does ``anomaly audit verify`` name every file that was changed, and does reading a damaged file end
with an error that names it instead of a crash?
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from anomaly.bundle.store import verified_metadata
from anomaly.calibration.record import latest
from anomaly.cohort.table import read_records
from anomaly.core.errors import AnomalyError
from anomaly.runs.reader import read_run_info, read_scores, read_volumes
from pipelines.audit import verify
from tests.robustness.mutations import Rng, mutate_bytes

NOT_SEALED = ("training/", "calibration_scans/", "ingested/", ".writer")
"""Beginnings of names of files that no audit log seals: logs, and what is made again when it is needed."""


def flip_last_byte(path: Path) -> None:
    """Change one byte of a file."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def empty(path: Path) -> None:
    """Remove the content of a file."""
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    """Append to a file."""
    path.write_bytes(path.read_bytes() + b"\n")


CHANGES: dict[str, Callable[[Path], None]] = {
    "one byte changed": flip_last_byte,
    "emptied": empty,
    "lengthened": lengthen,
    "deleted": Path.unlink,
}


def tampered(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Change each file of a run or model in every way; yield the file, the change and whether it was noticed."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in (name for name in names if not name.startswith(NOT_SEALED)):
        for change, make in CHANGES.items():
            yield name, change, _is_noticed(folder, name, make)


def _is_noticed(folder: Path, name: str, change: Callable[[Path], None]) -> bool:
    with tempfile.TemporaryDirectory() as other:
        copy = Path(shutil.copytree(folder, Path(other, folder.name)))
        change(copy / name)
        try:
            return not verify(copy)["verified"]
        except AnomalyError:
            return True


def read_cohort(folder: Path) -> None:
    """Read the records of a cohort."""
    read_records(folder)


def read_run(folder: Path) -> None:
    """Read a run as ``report`` does."""
    read_run_info(folder)
    for score in read_scores(folder):
        if score.map_path:
            read_volumes(folder, score.scan_id)


def read_model(folder: Path) -> None:
    """Read a model and its newest calibration as ``score`` does."""
    verified_metadata(folder)
    latest(folder)


READERS: dict[str, Callable[[Path], None]] = {"training": read_cohort, "run": read_run, "atlas": read_model}
"""Folder that :func:`tests.robustness.kill_matrix.make_inputs` makes → how its files are read."""


def read_damaged(folder: Path, read: Callable[[Path], None], seeds: range) -> Counter[str]:
    """Damage one file of a folder for each seed and read it: ``"read"``, ``"refused"``, or the crash."""
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as other:
            copy = Path(shutil.copytree(folder, Path(other, folder.name)))
            _damage(copy, np.random.default_rng(seed))
            outcomes[_outcome(copy, read)] += 1
    return outcomes


def _damage(folder: Path, rng: Rng) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    mutate_bytes(files[int(rng.integers(len(files)))], rng)


def _outcome(folder: Path, read: Callable[[Path], None]) -> str:
    try:
        read(folder)
    except AnomalyError:
        return "refused"
    except Exception as error:  # noqa: BLE001 - whatever a reader raises besides its own errors is a crash
        return f"crashed: {type(error).__name__}"
    return "read"
