"""Run tasks in worker processes, return results in order, and survive the crash of a worker."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from anomaly.core.processes import exit_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")  # fork is unsafe while numeric libraries run threads

# The function that this worker process runs, and whether to stop; set once when the process starts.
_work: Callable[[Any], Any] | None = None
_stop: Event | None = None


def run_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], on_crash: Callable[[Task, str], Result], jobs: int
) -> Generator[Result, None, None]:
    """Yield ``work(task)`` for each task, in the order of the tasks, computed by ``jobs`` processes.

    While the caller is busy, the processes work up to ``2 · jobs`` tasks ahead. When a process dies (killed, out of
    memory), each unfinished task is tried again, alone in a new process. If that process dies, too, the result of
    the task is that of ``on_crash``. On an interrupt, running tasks are finished and the others are dropped.

    Parameters
    ----------
    work
        Picklable function of one task; sent to each process once. Numeric libraries use one thread meanwhile, so
        that results do not depend on ``jobs``.
    tasks
        Picklable; taken one at a time.
    on_crash
        Makes the result of a task that crashed its process, from the task and the reason.
    jobs
        Number of processes; 0 runs the tasks in this process, where a crash is not survived.

    Yields
    ------
    Result
        One per task.
    """
    if jobs == 0:
        yield from _run_in_this_process(work, tasks)
        return
    waiting = iter(tasks)
    queue: deque[tuple[Task, Future[Any]]] = deque()
    stop = _CONTEXT.Event()
    pool = _pool(work, jobs, stop)
    try:
        while True:
            for task in waiting:
                queue.append((task, _submit(pool, task)))
                if len(queue) >= 2 * jobs:
                    break
            if not queue:
                return
            task, future = queue.popleft()
            if not isinstance(future.exception(), BrokenProcessPool):
                yield _result(task, future, on_crash)
                continue
            pool.shutdown()
            unfinished = [(task, future), *queue]
            queue.clear()
            for task, first_try in unfinished:
                yield _run_alone(work, task, on_crash) if first_try.exception() else first_try.result()
            pool = _pool(work, jobs, stop)
    finally:
        stop.set()  # tasks that wait inside the pool cannot be cancelled, but return immediately
        pool.shutdown(wait=True, cancel_futures=True)


def _run_in_this_process(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
    for task in tasks:
        with one_thread():
            result = work(task)
        yield result


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread per numeric library in the block, as worker processes do, so that results are the same."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _run_alone(work: Callable[[Task], Result], task: Task, on_crash: Callable[[Task, str], Result]) -> Result:
    with _pool(work, 1, _CONTEXT.Event()) as pool:
        return _result(task, _submit(pool, task), on_crash)


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Any]:
    try:
        return pool.submit(_run_task, task)
    except BrokenProcessPool as error:  # a worker died after the last result was taken
        broken: Future[Any] = Future()
        broken.set_exception(error)
        return broken


def _result(task: Task, future: Future[Any], on_crash: Callable[[Task, str], Result]) -> Result:
    error = future.exception()
    if error is None:
        result: Result = future.result()
        return result
    if isinstance(error, BrokenProcessPool):
        return on_crash(task, "its process was killed while working on it alone, possibly because memory ran out")
    return on_crash(task, f"its process reported {type(error).__name__}")


def _pool(work: Callable[[Any], Any], jobs: int, stop: Event) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=_CONTEXT, initializer=_start, initargs=(work, stop))


def _start(work: Callable[[Any], Any], stop: Event) -> None:
    global _work, _stop
    _work, _stop = work, stop
    exit_with_parent()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)


def _run_task(task: Any) -> Any:
    if _work is None or _stop is None:
        raise RuntimeError("the worker was not started")
    return None if _stop.is_set() else _work(task)
