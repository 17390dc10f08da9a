"""Run several processes that train one model together, each on its own device.

The processes are spawned. Lightning would run the command of the program again instead, which a notebook or a test
does not have, and every process would go on to write the bundle. Here the calling process waits, receives progress
and errors, and continues alone. Spawning works for CPU and GPU; a fork must not follow the first use of CUDA or of
threads. If the calling process dies, the others end too.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException, start_processes

from anomaly.core.errors import AnomalyError, TrainingError
from anomaly.core.processes import exit_with_parent
from anomaly.core.progress import Progress

LISTEN_EVERY_SECONDS = 0.2
GRACE_SECONDS = 5.0  # until the other processes are killed after one has failed


def run_processes(work: Callable[[Progress], None], count: int, report: Progress | None) -> None:
    """Run ``work`` in ``count`` processes until all are done; environment variables give each its rank.

    Parameters
    ----------
    work
        Picklable; called with a function that reports progress.
    count
        Number of processes.
    report
        Called in this process with the progress that they report.

    Raises
    ------
    AnomalyError
        The error that a process raised; a TrainingError if the system killed one.
    """
    channel = get_context("spawn").SimpleQueue()
    # Pickled by value: with torch's own pickling all processes would share the memory of one model.
    arguments = (pickle.dumps(work), find_free_network_port(), channel)
    with _environment(TORCH_CPP_LOG_LEVEL="ERROR"):  # torch reads it when it is imported
        processes = start_processes(_process, arguments, count, join=False, start_method="spawn")
    try:
        while not processes.join(LISTEN_EVERY_SECONDS, GRACE_SECONDS):
            _receive(channel, report)
        _receive(channel, report)
    except ProcessException as failure:
        _receive(channel, report)  # the error it sent says more than that a process failed
        if isinstance(failure, ProcessExitedException):
            raise TrainingError(
                f"found one of {count} training processes ended from outside ({failure}), perhaps because "
                "memory ran out; expected all to finish. The same command continues from the last checkpoint"
            ) from failure
        raise
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()  # an interrupted write leaves the old checkpoint
                process.join()


def _process(rank: int, pickled_work: bytes, port: int, channel: Any) -> None:
    variables = {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(variables)
    exit_with_parent()
    work: Callable[[Progress], None] = pickle.loads(pickled_work)  # noqa: S301 - from the parent process
    try:
        work(lambda *values: channel.put(values))
    except AnomalyError as error:
        channel.put(error)
        raise


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for the processes that start inside the context."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _receive(channel: Any, report: Progress | None) -> None:
    while not channel.empty():
        message = channel.get()
        if isinstance(message, AnomalyError):
            raise message
        if report is not None:
            report(*message)
