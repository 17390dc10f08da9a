"""Put interrupts off while a state changes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def interrupts_deferred() -> Iterator[list[int]]:
    """Let a block end before an interrupt is handled; yield the numbers of the signals that wait.

    The first of them is handled when the block has ended, as it would have been without the block. Signals without
    a handler in Python still end the program at once, or are ignored. In other threads than the main one, which
    Python does not interrupt, nothing changes.
    """
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS if _is_main_thread()}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: waiting.append(number))
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
