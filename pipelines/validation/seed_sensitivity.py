"""Measure how much results depend on the seed: run a whole task with several seeds.

A threshold that a correct implementation misses with one seed in ten will be missed one day on another processor,
whose rounding acts like another seed. The seeds of the trainings and of the splits of one-class detection change;
the images of the dataset, the reference classifier and the random numbers of the checks stay. ::

    python -m pipelines.validation.seed_sensitivity digits-small -o validation/seeds

Each seed is a validation of its own in ``output/<task>/<seed>/``; after an interruption the same command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly.evaluation.tables import markdown
from pipelines.common import cores, find_config
from pipelines.validation.report.result import ThresholdResult, ValidationResult
from pipelines.validation.run import load_settings, select_models, validate
from pipelines.validation.settings import FamilyEntry, ValidationSettings


def with_seed(task: ValidationSettings, seed: int) -> ValidationSettings:
    """Return a task whose trainings, and splits of one-class detection, have this seed."""
    models = {
        name: entry.model_copy(update={"training": entry.training.model_copy(update={"seed": seed})})
        if isinstance(entry, FamilyEntry)
        else entry
        for name, entry in task.models.items()
    }
    one_class = task.one_class.model_copy(update={"seeds": (seed,)})
    return task.model_copy(update={"models": models, "one_class": one_class})


def run_seeds(
    task: ValidationSettings,
    output: Path,
    seeds: Sequence[int],
    families: Sequence[str] = (),
    device: str = "auto",
    jobs: int = 0,
) -> list[ValidationResult]:
    """Run a task, or only its models of some families or names, once per seed."""
    task = select_models(task, families)
    results = []
    for seed in seeds:
        folder = output / task.name / str(seed)
        _share_classifiers(folder)
        results.append(validate(with_seed(task, seed), folder, device=device, jobs=jobs))
    return results


def seed_table(results: Iterable[ValidationResult]) -> pd.DataFrame:
    """Return the range over several runs of each measure that has a threshold.

    Returns
    -------
    pandas.DataFrame
        Columns ``model``, ``measure``, ``threshold``, ``lowest`` and ``highest`` measured value (NaN where nothing
        was measured), ``missed``, the number of runs that missed the threshold, and ``runs``.
    """
    rows: dict[tuple[str, str], list[ThresholdResult]] = {}
    for result in results:
        for row in (row for model in result.results for row in result.threshold_results(model)):
            rows.setdefault((row.model, row.measure), []).append(row)
    return pd.DataFrame([_table_row(of_runs) for of_runs in rows.values()])


def _table_row(runs: Sequence[ThresholdResult]) -> dict[str, str | float]:
    first, values = runs[0], np.array([run.value for run in runs])
    measured = values[~np.isnan(values)] if not np.isnan(values).all() else values
    return {
        "model": first.model,
        "measure": first.measure,
        "threshold": str(first.threshold),
        "lowest": float(measured.min()),
        "highest": float(measured.max()),
        "missed": sum(not run.met for run in runs),
        "runs": len(runs),
    }


def _share_classifiers(folder: Path) -> None:
    """Link the classifiers that were trained with other seeds: they are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for known in folder.parent.glob("*/classifier-*.safetensors"):
        if not (folder / known.name).exists():
            (folder / known.name).hardlink_to(known)


def main() -> None:
    """Print where the images are from, the table, and every failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", help="a shipped validation task, or a YAML file")
    parser.add_argument("-o", "--output", type=Path, default=Path("validation/seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--family", action="append", default=[], help="only this family or model; may be repeated")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--jobs", type=int, default=0, help=f"models at a time; 0 = one per core ({cores()})")
    options = parser.parse_args()
    task = load_settings(find_config(options.task, "validation"))
    results = run_seeds(task, options.output, options.seeds, options.family, options.device, options.jobs)
    print(results[0].source, markdown(seed_table(results).round(4)), sep="\n\n")
    for seed, result in zip(options.seeds, results, strict=True):
        for failure in result.failures:
            print(f"seed {seed}: {failure}")


if __name__ == "__main__":
    main()
