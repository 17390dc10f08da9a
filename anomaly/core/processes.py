"""Interrupt the program on signals, and end worker processes together with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from anomaly.core.signals import INTERRUPTS

EXIT_OF_SIGNAL = 128
"""The exit code of a program that a signal ended is this plus the number of the signal."""

_SPAWN = multiprocessing.get_context("spawn")  # fork is unsafe while numeric libraries run threads


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end: Ctrl-C, SIGTERM or the end of the terminal.

    Parameters
    ----------
    number
        The number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code that shells and schedulers expect: 130 after Ctrl-C, 143 after SIGTERM."""
    return EXIT_OF_SIGNAL + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT)


def interrupt_on_signals() -> None:
    """Raise :class:`Interrupted` in the main thread at the first signal to end; end at once at the second.

    A signal that is ignored, as ``nohup`` and background jobs of a shell ask for, stays ignored.
    """
    for number in INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    for each in INTERRUPTS:
        if signal.getsignal(each) is _interrupt:
            signal.signal(each, _end_at_once)
    raise Interrupted(number)


def _end_at_once(number: int, _: FrameType | None) -> None:
    os._exit(EXIT_OF_SIGNAL + number)


class WorkerPool(ProcessPoolExecutor):
    """Worker processes that leave interrupts to this process, and end with it however it ends.

    Their temporary files are in a folder of their own, which is removed with the pool.

    Parameters
    ----------
    n_processes
        The number of processes.
    initializer
        Called in each process before its first task.
    initargs
        The arguments of ``initializer``.
    max_tasks_per_child
        Tasks after which a process is replaced by a new one; by default never.
    """

    def __init__(
        self,
        n_processes: int,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        stop, self._stop = _SPAWN.Pipe(duplex=False)
        self._scratch = TemporaryDirectory(prefix="anomaly-", ignore_cleanup_errors=True)
        super().__init__(
            n_processes,
            _SPAWN,
            _start_worker,
            (stop, self._scratch.name, initializer, initargs),
            max_tasks_per_child=max_tasks_per_child,
        )

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        """Submit a task. A process that starts for it inherits that Ctrl-C is blocked, so it starts undisturbed."""
        with _interrupts_blocked():
            return super().submit(*arguments, **options)

    def end(self) -> None:
        """End all processes now; tasks that are not finished are lost."""
        self._stop.close()
        self.shutdown(cancel_futures=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Drop tasks that have not started, if asked to; finish the others and remove temporary files."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._scratch.cleanup()


@contextmanager
def worker_pool(*arguments: Any, **options: Any) -> Iterator[WorkerPool]:
    """Yield a :class:`WorkerPool`, made from its parameters.

    When the block is left early, tasks that have not started are dropped. Running tasks are finished, unless an
    error or an interrupt is the reason: then the processes end at once.
    """
    pool = WorkerPool(*arguments, **options)
    try:
        yield pool
    except BaseException as error:
        if not isinstance(error, GeneratorExit) or _is_interrupted(error):
            pool.end()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _is_interrupted(error: BaseException) -> bool:
    """Return whether an error was raised while an interrupt was handled."""
    context = error.__context__
    return context is not None and (isinstance(context, KeyboardInterrupt) or _is_interrupted(context))


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(
    stop: Connection, scratch: str, initializer: Callable[..., None] | None, arguments: tuple[Any, ...]
) -> None:
    exit_with_parent(stop)
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    if initializer is not None:
        initializer(*arguments)


def exit_with_parent(*stops: Connection) -> None:
    """Ignore Ctrl-C, which the parent process handles, and exit when the parent ends, even if it was killed.

    The process leads a process group from then on. Programs that it starts belong to the group and end with it.

    Parameters
    ----------
    stops
        Ends of pipes; the process also exits when the other end of one is closed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    threading.Thread(target=_exit_when_parent_ends, args=stops, daemon=True).start()


def _exit_when_parent_ends(*stops: Connection) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, *stops])
        os.killpg(os.getpgrp(), signal.SIGKILL)
