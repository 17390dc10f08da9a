"""Provenance of records and results: user, command and time."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path


def now() -> str:
    """Return the current time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def user_name() -> str:
    """Return the name of the user account that runs the program, or its number if it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def command_line() -> str:
    """Return the command line of this process, with the program as file name only."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
