"""Running tasks in worker processes: order, and crashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.cohort.workers import run_in_order
from tests.cohort.factory import die_once, square, square_or_die, threads


def on_crash(number: int, reason: str) -> int:
    assert "killed while working on it alone" in reason
    return -1


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [0, 1, 2])
def test_results_are_in_the_order_of_the_tasks(jobs: int) -> None:
    assert list(run_in_order(square, range(7), on_crash, jobs)) == [0, 1, 4, 9, 16, 25, 36]


@pytest.mark.slow
def test_only_the_task_that_crashes_its_process_fails() -> None:
    assert list(run_in_order(square_or_die, range(7), on_crash, 2)) == [0, 1, 4, -1, 16, 25, 36]


@pytest.mark.slow
def test_a_task_whose_process_crashes_once_is_tried_again(tmp_path: Path) -> None:
    tasks = [(tmp_path, number) for number in (0, 1, 2, 4)]
    assert list(run_in_order(die_once, tasks, lambda *_: -1, 2)) == [0, 1, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [0, 1])
def test_numeric_libraries_use_one_thread(jobs: int) -> None:
    assert list(run_in_order(threads, [0], lambda *_: (0, 0), jobs)) == [(1, 1)]


@pytest.mark.slow
def test_tasks_are_taken_only_a_few_ahead() -> None:
    taken = []

    def tasks() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    results = run_in_order(square, tasks(), on_crash, 2)
    assert next(results) == 0
    assert len(taken) <= 5
    results.close()


def test_without_tasks_no_process_is_started() -> None:
    assert list(run_in_order(square, [], on_crash, 2)) == []
