"""What every pipeline needs: progress, shipped configs, who and with what, exit codes."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import anomaly
from anomaly.core.errors import AnomalyError, ConfigError, InputError, PolicyError, unknown_name
from anomaly.core.files import append_line
from anomaly.core.software import versions

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done)."""

LIBRARIES = ("torch", "monai", "lightning", "nibabel", "simpleitk", "pydicom", "nilearn", "scikit-learn", "numpy")


SAMPLE = Path(__file__).resolve().parents[1] / "sample_data"
"""The shipped scans."""


class Exit(IntEnum):
    """Exit codes of every verb."""

    DONE = 0
    CRASH = 1
    USAGE = 2
    SOME_REFUSED = 3
    BAD_INPUT = 4
    POLICY = 5
    FLAGGED = 6
    MISSED = 7


def exit_code(error: AnomalyError) -> Exit:
    """Return the exit code an error leads to."""
    if isinstance(error, PolicyError):
        return Exit.POLICY
    return Exit.BAD_INPUT if isinstance(error, InputError) else Exit.SOME_REFUSED


def no_progress(done: int, total: int, message: str) -> None:
    """Report nothing."""
    del done, total, message


def shipped_configs(kind: str) -> dict[str, Path]:
    """Return name → path of the shipped configs of a kind (``"models"``, ``"preprocessing"``, …)."""
    folder = Path(__file__).resolve().parents[1] / "configs" / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name_or_path: str | Path, kind: str) -> Path:
    """Return the path of a config given by a shipped name or by a path."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"no configuration at {path}; give a shipped name or the path of a YAML file")
        return path
    shipped = shipped_configs(kind)
    if str(name_or_path) not in shipped:
        raise ConfigError(
            unknown_name(f"{kind} config", str(name_or_path), list(shipped)) + ", or a path to a .yaml"
        )
    return shipped[str(name_or_path)]


def software() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"anomaly": anomaly.__version__, "python": platform.python_version(), **versions(LIBRARIES)}


def now() -> str:
    """Return the time in UTC as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def who() -> str:
    """Return the name of the account that runs the program."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def command_line() -> str:
    """Return the command as typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def audit(folder: Path, verb: str, **facts: Any) -> None:
    """Append to ``audit.jsonl`` who ran what, when."""
    append_line(
        folder / "audit.jsonl", {"at": now(), "who": who(), "verb": verb, "command": command_line(), **facts}
    )


def cores() -> int:
    """Return the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
