"""Progress reports of long computations."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Callback with the arguments (steps done, total steps, message)."""


def no_progress(done: int, total: int, message: str) -> None:
    """Ignore the report."""
    del done, total, message
