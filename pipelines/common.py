"""Shared by all commands: shipped configs, exit codes and the audit log."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any

from anomaly.core.aliases import current_config_name
from anomaly.core.audit_log import append_entry, hash_files
from anomaly.core.errors import AnomalyError, ConfigError, InputError, PolicyError, unknown_name
from anomaly.core.provenance import command_line, now, user_name

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data"
"""Folder of the shipped sample scans."""


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    CRASH = 1
    USAGE = 2
    SCANS_REFUSED = 3
    BAD_INPUT = 4
    POLICY = 5
    FLAGGED = 6
    THRESHOLD_MISSED = 7


def exit_code(error: AnomalyError) -> Exit:
    """Return the exit code for an error."""
    if isinstance(error, PolicyError):
        return Exit.POLICY
    return Exit.BAD_INPUT if isinstance(error, InputError) else Exit.SCANS_REFUSED


def shipped_configs(kind: str) -> dict[str, Path]:
    """Return name → path of the shipped configs of a kind (``"models"``, ``"preprocessing"``, …)."""
    folder = Path(__file__).resolve().parents[1] / "configs" / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name_or_path: str | Path, kind: str) -> Path:
    """Return the path of a config.

    Parameters
    ----------
    name_or_path
        A shipped name, or the path of a YAML file.
    kind
        Kind of config, as in :func:`shipped_configs`.

    Raises
    ------
    ConfigError
        There is no such file, or no shipped config of this name; the message lists the shipped ones.
    """
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"no configuration at {path}; give a shipped name or the path of a YAML file")
        return path
    shipped, name = shipped_configs(kind), str(name_or_path)
    if kind == "models":
        name = current_config_name(name)
    if name not in shipped:
        raise ConfigError(unknown_name(f"{kind} config", name, list(shipped)) + ", or a path to a .yaml")
    return shipped[name]


def audit(folder: Path, verb: str, *, files: Iterable[Path] = (), **facts: Any) -> None:
    """Append user, command and time to the audit log of a folder, together with ``facts``.

    Parameters
    ----------
    files
        Files in the folder that the command wrote; the entry seals them.
    """
    entry = {"at": now(), "user_name": user_name(), "verb": verb, "command": command_line(), **facts}
    sealed = hash_files(folder, files)
    append_entry(folder, {**entry, "files": sealed} if sealed else entry)


def cores() -> int:
    """Return the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
