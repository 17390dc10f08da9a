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
GRACE_SECONDS = 5.0  # for the others to notice that one of them has failed


def run_processes(work: Callable[[Progress], None], count: int, report: Progress | None) -> None:
    """Run ``work`` in ``count`` processes until all are done; each finds its rank where lightning looks for it.

    Parameters
    ----------
    work
        Picklable; called with a function that tells of progress.
    count
        Number of processes.
    report
        Called in this process with what they tell.

    Raises
    ------
    AnomalyError
        The one that a process raised; TrainingError if the system ended one.
    """
    channel = get_context("spawn").SimpleQueue()
    # Packed by value: torch's own pickling would have all processes share the memory of one model.
    arguments = (pickle.dumps(work), find_free_network_port(), channel)
    with _environment(TORCH_CPP_LOG_LEVEL="ERROR"):  # torch reads it as it is imported; its remarks are for us
        together = start_processes(_process, arguments, count, join=False, start_method="spawn")
    try:
        while not together.join(LISTEN_EVERY_SECONDS, GRACE_SECONDS):
            _hear(channel, report)
        _hear(channel, report)
    except ProcessException as failure:
        _hear(channel, report)  # an error that was told says more than that a process has failed
        if isinstance(failure, ProcessExitedException):
            raise TrainingError(
                f"found one of {count} training processes ended from outside ({failure}), perhaps for want of "
                "memory; expected all to finish. The same command continues from the last checkpoint"
            ) from failure
        raise
    finally:
        for process in together.processes:
            if process.is_alive():
                process.kill()  # checkpoints are written whole or not at all
                process.join()


def _process(rank: int, packed: bytes, port: int, channel: Any) -> None:
    here = {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(here)
    exit_with_parent()
    work: Callable[[Progress], None] = pickle.loads(packed)  # noqa: S301 - made by the parent process a moment ago
    try:
        work(lambda *told: channel.put(told))
    except AnomalyError as error:
        channel.put(error)
        raise


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Give the processes that start now some environment variables."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _hear(channel: Any, report: Progress | None) -> None:
    while not channel.empty():
        told = channel.get()
        if isinstance(told, AnomalyError):
            raise told
        if report is not None:
            report(*told)
