"""Who ran which command, and when: what every record and result is stamped with."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def user_name() -> str:
    """Return the name of the account that runs the program."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def command_line() -> str:
    """Return the command as typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
