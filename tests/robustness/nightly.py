"""The nightly size of the robustness tests: ``make robustness`` runs it and writes docs/robustness.md.

::

    python -m tests.robustness.nightly --mutants 10000
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import track

from anomaly.core.files import write_text
from anomaly.evaluation.tables import fill_tables, markdown
from tests.conftest import REPOSITORY
from tests.robustness.fuzzing import Outcome, Result, run_mutants
from tests.robustness.targets import TARGETS

PAGE = REPOSITORY / "docs" / "robustness.md"
MUTANTS_PER_TASK = 25
UNACCEPTABLE = (Outcome.SILENT, Outcome.CRASHED, Outcome.HUNG)


def fuzz(n_mutants: int) -> list[Result]:
    """Read mutants of every target, spread over the cores; the seeds of a target start at 0."""
    per_target = -(-n_mutants // len(TARGETS))
    tasks = [
        (index, range(start, min(start + MUTANTS_PER_TASK, per_target)))
        for index in range(len(TARGETS))
        for start in range(0, per_target, MUTANTS_PER_TASK)
    ]
    return list(_in_parallel(tasks))


def fuzz_table(results: Sequence[Result]) -> str:
    """Return a markdown table: one row per target, one column per outcome."""
    rows = []
    for target in TARGETS:
        counts = Counter(result.outcome for result in results if result.target == target.name)
        rows.append({"input": target.name, "mutants": counts.total(), **{o.value: counts[o] for o in Outcome}})
    table = pd.DataFrame(rows)
    total = {"input": "**all**", **table.drop(columns="input").sum().to_dict()}
    return markdown(pd.concat([table, pd.DataFrame([total])], ignore_index=True))


def explanation_table(results: Sequence[Result]) -> str:
    """Return a markdown table: why mutants were read otherwise, and how many."""
    counts = Counter((r.target, r.detail) for r in results if r.outcome is Outcome.EXPLAINED)
    rows = [{"input": target, "reason": reason, "mutants": n} for (target, reason), n in sorted(counts.items())]
    return markdown(pd.DataFrame(rows, columns=["input", "reason", "mutants"]))


def main() -> None:
    """Run everything, write the page, and end with 1 if any result is unacceptable."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    results = fuzz(options.mutants)
    tables = {"fuzzing": fuzz_table(results), "undetectable": explanation_table(results)}
    write_text(options.page, fill_tables(options.page.read_text(encoding="utf-8"), tables))
    wrong = [result for result in results if result.outcome in UNACCEPTABLE]
    for result in wrong:
        print(f"{result.target}, seed {result.seed}: {result.mutation}: {result.outcome} ({result.detail})")
    sys.exit(bool(wrong))


def _in_parallel(tasks: Sequence[tuple[int, range]]) -> Iterator[Result]:
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), initializer=_silence) as pool:
        found = pool.map(_run_task, tasks)
        for results in track(found, "reading mutants", len(tasks), console=Console(stderr=True)):
            yield from results


def _run_task(task: tuple[int, range]) -> list[Result]:
    index, seeds = task
    return run_mutants(TARGETS[index], seeds)


def _silence() -> None:
    """Hide what nibabel and pydicom say about each mutant."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    main()
