"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done)."""


def no_progress(done: int, total: int, message: str) -> None:
    """Report nothing."""
    del done, total, message
