"""How far the bars of a task are from what luck does: all of it, trained with several seeds.

A bar that a right implementation misses with one seed in ten will be missed one day on another processor, whose
rounding is as good as another seed. Seeds of trainings, and of the parts that ``one_class`` draws, are changed; the
pictures of a world, its classifier and what exams draw stay. ::

    python -m pipelines.validation.seed_sensitivity digits-small -o validation/spread

Folders: ``output/<task>/<seed>/``, each a validation of its own; interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly.evaluation.tables import markdown
from pipelines.common import cores, find_config
from pipelines.validation.report.result import Check, Verdict
from pipelines.validation.run import chosen, load_settings, validate
from pipelines.validation.settings import TrialSettings, ValidationSettings


def reseeded(task: ValidationSettings, seed: int) -> ValidationSettings:
    """Return a task whose trainings, and parts of ``one_class``, have this one seed."""
    trials = {
        name: trial.model_copy(update={"training": trial.training.model_copy(update={"seed": seed})})
        if isinstance(trial, TrialSettings)
        else trial
        for name, trial in task.trials.items()
    }
    one_class = task.one_class.model_copy(update={"seeds": (seed,)})
    return task.model_copy(update={"trials": trials, "one_class": one_class})


def run_seeds(
    task: ValidationSettings,
    output: Path,
    seeds: Sequence[int],
    families: Sequence[str] = (),
    device: str = "auto",
    jobs: int = 0,
) -> list[Verdict]:
    """Run a task, or those of its trials that are of some families or names, once per seed."""
    task = chosen(task, families)
    verdicts = []
    for seed in seeds:
        folder = output / task.name / str(seed)
        _share_classifiers(folder)
        verdicts.append(validate(reseeded(task, seed), folder, device=device, jobs=jobs))
    return verdicts


def spread(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Return how far each measure that has a bar lies apart in several runs.

    Returns
    -------
    pandas.DataFrame
        Columns ``model``, ``measure``, ``bar``, ``lowest`` and ``highest`` of what was measured (NaN where nothing
        was), ``missed``, the number of runs that did not reach the bar, and ``runs``.
    """
    checks: dict[tuple[str, str], list[Check]] = {}
    for verdict in verdicts:
        for check in (check for result in verdict.results for check in verdict.checks(result)):
            checks.setdefault((check.trial, check.measure), []).append(check)
    return pd.DataFrame([_row(of_runs) for of_runs in checks.values()])


def _row(checks: Sequence[Check]) -> dict[str, str | float]:
    first, found = checks[0], np.array([check.found for check in checks])
    measured = found[~np.isnan(found)] if not np.isnan(found).all() else found
    return {
        "model": first.trial,
        "measure": first.measure,
        "bar": str(first.bar),
        "lowest": float(measured.min()),
        "highest": float(measured.max()),
        "missed": sum(not check.met for check in checks),
        "runs": len(checks),
    }


def _share_classifiers(folder: Path) -> None:
    """Bring the classifiers that other seeds have trained: they are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for known in folder.parent.glob("*/classifier-*.safetensors"):
        if not (folder / known.name).exists():
            (folder / known.name).hardlink_to(known)


def main() -> None:
    """Print where the pictures are from, the table, and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", help="a shipped validation task, or a YAML file")
    parser.add_argument("-o", "--output", type=Path, default=Path("validation/spread"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--family", action="append", default=[], help="only this family or trial; may be repeated")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--jobs", type=int, default=0, help=f"trials at a time; 0 = one per core ({cores()})")
    asked = parser.parse_args()
    task = load_settings(find_config(asked.task, "validation"))
    verdicts = run_seeds(task, asked.output, asked.seeds, asked.family, asked.device, asked.jobs)
    print(verdicts[0].source, markdown(spread(verdicts).round(4)), sep="\n\n")
    for seed, verdict in zip(asked.seeds, verdicts, strict=True):
        for failure in verdict.failures:
            print(f"seed {seed}: {failure}")


if __name__ == "__main__":
    main()
