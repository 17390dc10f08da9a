"""Run tasks in worker processes, return results in order, and survive the crash of a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import SimpleITK as sitk  # noqa: N813 - SimpleITK's own convention
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from anomaly.core.errors import OutputError
from anomaly.core.processes import WorkerPool, worker_pool

Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None  # the function that this worker process runs; set once when it starts


def run_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], on_crash: Callable[[Task, str], Result], jobs: int
) -> Generator[Result, None, None]:
    """Yield ``work(task)`` for each task, in the order of the tasks, computed by ``jobs`` processes.

    While the caller is busy, the processes work up to ``2 · jobs`` tasks ahead. When a process dies (killed, out of
    memory), each unfinished task is tried again, alone in a new process. If that process dies, too, the result of
    the task is that of ``on_crash``. If the caller stops early, running tasks are finished and the others are
    dropped; on an interrupt, the processes end at once.

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
        Number of processes; 0 runs the tasks in this process, where a crash ends this process.

    Yields
    ------
    Result
        One per task.

    Raises
    ------
    OutputError
        A task could not write its result: no other could.
    """
    if jobs == 0:
        yield from _run_in_this_process(work, tasks)
        return
    waiting = iter(tasks)
    unfinished = yield from _run_until_crash(work, waiting, on_crash, jobs)
    while unfinished:
        for task, first_try in unfinished:
            yield _run_alone(work, task, on_crash) if first_try.exception() else first_try.result()
        unfinished = yield from _run_until_crash(work, waiting, on_crash, jobs)


def _run_until_crash(
    work: Callable[[Task], Result], waiting: Iterator[Task], on_crash: Callable[[Task, str], Result], jobs: int
) -> Generator[Result, None, list[tuple[Task, Future[Any]]]]:
    """Yield results until all tasks are done or a process dies; return the tasks that were not finished then."""
    queue: deque[tuple[Task, Future[Any]]] = deque()
    with _pool(work, jobs) as pool:
        while True:
            for task in waiting:
                queue.append((task, _submit(pool, task)))
                if len(queue) >= 2 * jobs:
                    break
            if not queue:
                return []
            task, future = queue.popleft()
            if isinstance(future.exception(), BrokenProcessPool):
                return [(task, future), *queue]
            yield _result(task, future, on_crash)


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
    with _pool(work, 1) as pool:
        return _result(task, _submit(pool, task), on_crash)


def _submit(pool: WorkerPool, task: Task) -> Future[Any]:
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
    if isinstance(error, OutputError):
        raise error
    if isinstance(error, BrokenProcessPool):
        return on_crash(task, "its process was killed while working on it alone, possibly because memory ran out")
    return on_crash(task, f"its process reported {type(error).__name__}")


def _pool(work: Callable[[Any], Any], jobs: int) -> AbstractContextManager[WorkerPool]:
    return worker_pool(jobs, _start, (work,))


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)


def _run_task(task: Any) -> Any:
    if _work is None:
        raise RuntimeError("the worker was not started")
    return _work(task)
