"""The nightly size of the robustness tests: ``make robustness`` runs it and writes docs/robustness.md.

::

    python -m tests.robustness.nightly --mutants 10000 --kills 100
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
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
from tests.robustness.kill_matrix import COMMANDS, KillMatrix
from tests.robustness.tampering import CHANGES, READERS, read_damaged, tampered
from tests.robustness.targets import TARGETS

PAGE = REPOSITORY / "docs" / "robustness.md"
MUTANTS_PER_TASK = 25
FOLDER_KINDS = {"training": "cohort", "run": "run", "atlas": "model"}
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


def kill(matrix: KillMatrix, n_kills: int, seed: int) -> tuple[str, list[str]]:
    """Kill commands and continue them; return a markdown table, and what differed afterwards."""
    counts, problems = Counter[str](), list[str]()
    for one in track(list(matrix.kills(n_kills, seed)), "killing commands", console=Console(stderr=True)):
        counts[one.verb] += 1
        if different := matrix.differences(one):
            problems.append(f"{one.verb} killed before operation {one.operation}: {', '.join(different)}")
    rows = [
        {"command": verb, "file operations": matrix.operations[verb], "kills": counts[verb],
         "another result": sum(problem.startswith(f"{verb} ") for problem in problems)}
        for verb in matrix.verbs
    ]  # fmt: skip
    return markdown(pd.DataFrame(rows)), problems


def tamper(inputs: Path) -> tuple[str, list[str]]:
    """Change every file of a run and a model; return a markdown table, and what was not noticed."""
    rows, problems = [], []
    for kind, name in (("run", "run"), ("model", "atlas")):
        found = list(tampered(inputs / name))
        for change in CHANGES:
            noticed = [is_noticed for _, made, is_noticed in found if made == change]
            rows.append({"folder": kind, "change": change, "files": len(noticed), "noticed": sum(noticed)})
        problems += [
            f"{kind}: {path} {change}: not noticed" for path, change, is_noticed in found if not is_noticed
        ]
    return markdown(pd.DataFrame(rows)), problems


def damage(inputs: Path, n_mutants: int) -> tuple[str, list[str]]:
    """Damage files of a cohort, a run and a model and read them; return a markdown table, and the crashes."""
    rows, problems = [], []
    for name, read in track(READERS.items(), "reading damaged results", console=Console(stderr=True)):
        counts = read_damaged(inputs / name, read, range(n_mutants))
        crashes = {outcome: n for outcome, n in counts.items() if outcome.startswith("crashed")}
        rows.append({"folder": FOLDER_KINDS[name], "mutants": counts.total(), "read": counts["read"],
                     "refused": counts["refused"], "crashed": sum(crashes.values())})  # fmt: skip
        problems += [f"{name}: {n} mutants {outcome}" for outcome, n in crashes.items()]
    return markdown(pd.DataFrame(rows)), problems


def main() -> None:
    """Run everything, write the page, and end with 1 if any result is unacceptable."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    results = fuzz(options.mutants)
    tables = {"fuzzing": fuzz_table(results), "undetectable": explanation_table(results)}
    problems = [
        f"{result.target}, seed {result.seed}: {result.mutation}: {result.outcome} ({result.detail})"
        for result in results
        if result.outcome in UNACCEPTABLE
    ]
    with tempfile.TemporaryDirectory() as folder:
        matrix = KillMatrix(Path(folder), list(COMMANDS))
        for name, (table, found) in {
            "kills": kill(matrix, options.kills, options.seed),
            "tampering": tamper(matrix.inputs),
            "damaged results": damage(matrix.inputs, options.mutants // 50),
        }.items():
            tables[name] = table
            problems += found
    write_text(options.page, fill_tables(options.page.read_text(encoding="utf-8"), tables))
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))


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
