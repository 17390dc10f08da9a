"""Work spread over processes, in order, where the death of one process loses one task at most."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import SimpleITK as sitk  # noqa: N813 - its own documentation's name
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from anomaly.core.processes import follow_parent

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("spawn")  # fork is unsafe beside the threads of numeric libraries

# What this worker process does, and whether to stop; set once when it starts.
_work: Callable[[Any], Any] | None = None
_stop: Event | None = None


def run_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], lost: Callable[[Task, str], Result], jobs: int
) -> Generator[Result, None, None]:
    """Yield ``work(task)`` for each task, in the order of the tasks, computed by ``jobs`` processes.

    While the consumer is busy the processes go on, up to ``2 · jobs`` tasks ahead. When a process dies (killed,
    out of memory), the tasks then under way are tried again one by one, each alone in a fresh process; one whose
    process dies then is ``lost``. On an interrupt, tasks under way are finished and the rest dropped.

    Parameters
    ----------
    work
        Picklable; sent to each process once. Sees one thread per numeric library, so that results do not depend on
        ``jobs``.
    lost
        Makes the result of a task that killed its process, given the reason.
    jobs
        Number of processes; 0 works in this process, without that protection.
    """
    if jobs == 0:
        yield from _here(work, tasks)
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
                yield _result(task, future, lost)
                continue
            pool.shutdown()
            suspects = [(task, future), *queue]
            queue.clear()
            for suspect, tried in suspects:
                yield _alone(work, suspect, lost) if tried.exception() else tried.result()
            pool = _pool(work, jobs, stop)
    finally:
        stop.set()  # tasks that wait inside the pool cannot be cancelled, but return at once
        pool.shutdown(wait=True, cancel_futures=True)


def _here(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
    for task in tasks:
        threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            with threadpool_limits(1):
                result = work(task)
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        yield result


def _alone(work: Callable[[Task], Result], task: Task, lost: Callable[[Task, str], Result]) -> Result:
    with _pool(work, 1, _CONTEXT.Event()) as pool:
        return _result(task, _submit(pool, task), lost)


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Any]:
    try:
        return pool.submit(_call, task)
    except BrokenProcessPool as error:  # a worker died since the last result was taken
        broken: Future[Any] = Future()
        broken.set_exception(error)
        return broken


def _result(task: Task, future: Future[Any], lost: Callable[[Task, str], Result]) -> Result:
    error = future.exception()
    if error is None:
        result: Result = future.result()
        return result
    if isinstance(error, BrokenProcessPool):
        return lost(task, "its process was killed while working on it alone, perhaps for want of memory")
    return lost(task, f"its process reported {type(error).__name__}")


def _pool(work: Callable[[Any], Any], jobs: int, stop: Event) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=_CONTEXT, initializer=_start, initargs=(work, stop))


def _start(work: Callable[[Any], Any], stop: Event) -> None:
    global _work, _stop
    _work, _stop = work, stop
    follow_parent()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)


def _call(task: Any) -> Any:
    if _work is None or _stop is None:
        raise RuntimeError("the worker was not started")
    return None if _stop.is_set() else _work(task)
