"""Train in several processes, each on its own device.

The calling process waits, receives progress and errors, and continues alone: it may be a notebook, a test, or a
command that goes on to write the bundle. Fabric's launchers would block it, or run the command again instead.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException, start_processes

from anomaly.core.errors import AnomalyError, TrainingError
from anomaly.core.processes import exit_with_parent
from anomaly.core.progress import Progress
from anomaly.core.signals import INTERRUPTS, interrupts_deferred
from anomaly.training.run import FitRun

LISTEN_EVERY_SECONDS = 0.2
CHECKPOINT_SECONDS = 60.0  # until the first process is killed after an interrupt, if it does not end
GRACE_SECONDS = 2.5  # after one process has failed: until the others get SIGTERM, and then until they are killed


def run_processes(work: Callable[[FitRun], None], run: FitRun) -> None:
    """Do the work of a run in as many processes as it has devices, until all are done.

    Raises
    ------
    AnomalyError
        The error that a process raised; a TrainingError if the system killed one.
    """
    channel = get_context("spawn").SimpleQueue()
    arguments = (work, replace(run, progress=None), find_free_network_port(), channel)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the new processes read it when they import torch
    with interrupts_deferred() as interrupts:
        processes = start_processes(_process, arguments, run.devices, join=False, start_method="spawn")
        try:
            while not (processes.join(LISTEN_EVERY_SECONDS, GRACE_SECONDS) or interrupts):
                _receive(channel, run.progress)
            if interrupts and processes.processes[0].is_alive():
                os.kill(processes.pids()[0], signal.SIGINT)  # it writes a checkpoint
                processes.processes[0].join(CHECKPOINT_SECONDS)
            _receive(channel, run.progress)
        except ProcessException as failure:
            _receive(channel, run.progress)  # the error it sent says more than that a process failed
            if not isinstance(failure, ProcessExitedException):
                raise
            raise TrainingError(
                f"found one of {run.devices} training processes ended from outside ({failure}), perhaps because "
                "memory ran out; expected all to finish. The same command continues from the last checkpoint"
            ) from failure
        finally:
            for process in processes.processes:
                process.kill()  # an interrupted write leaves the old checkpoint
                process.join()


def _process(rank: int, work: Callable[[FitRun], None], run: FitRun, port: int, channel: Any) -> None:
    exit_with_parent()
    for number in INTERRUPTS:  # the first process writes a checkpoint, and needs the others to complete its step
        signal.signal(number, _interrupt_once if rank == 0 else signal.SIG_IGN)
    for name in ("lightning.fabric", "lightning.pytorch"):  # the latter takes over the messages of the former
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work(replace(run, progress=lambda *report: channel.put(report)))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # its threads must end before the interpreter does
    except AnomalyError as error:
        channel.put(error)
        raise
    except KeyboardInterrupt:
        os._exit(0)  # the checkpoint is written; the end of the interpreter would wait for the other processes


def _interrupt_once(*_: object) -> None:
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _receive(channel: Any, report: Progress | None) -> None:
    while not channel.empty():
        message = channel.get()
        if isinstance(message, AnomalyError):
            raise message
        if report is not None:
            report(*message)
