"""Start the command line: ``anomaly`` and ``python -m anomaly``."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def application_folder() -> Path:
    """Return the folder that holds ``pipelines``: inside this package in a wheel, beside it in a checkout."""
    installed = PACKAGE / "_app"
    return installed if installed.is_dir() else PACKAGE.parent


def main() -> None:
    """Run the command line with :mod:`pipelines` importable, also in the processes that it spawns."""
    folder = str(application_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from pipelines.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
