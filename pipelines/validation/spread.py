"""How far the bars of a task are from what luck does: all of it, trained with several seeds.

A bar that a right implementation misses with one seed in ten will be missed one day on another processor, whose
rounding is as good as another seed. ::

    python -m pipelines.validation.spread digits-small -o validation/spread

Folders: ``output/<task>/<seed>/``, each a validation of its own; interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from anomaly.evaluation.tables import markdown
from pipelines.common import cores, find_config
from pipelines.validation.run import load_settings, validate
from pipelines.validation.settings import TrialSettings, ValidationSettings
from pipelines.validation.verdict import Check


def reseeded(task: ValidationSettings, seed: int) -> ValidationSettings:
    """Return a task whose trainings and parts have another seed."""
    trials = {
        name: trial.model_copy(update={"training": trial.training.model_copy(update={"seed": seed})})
        if isinstance(trial, TrialSettings)
        else trial
        for name, trial in task.trials.items()
    }
    one_class = task.one_class.model_copy(update={"seeds": (seed,)})
    return task.model_copy(update={"trials": trials, "one_class": one_class})


def run_spread(
    task: ValidationSettings, output: Path, seeds: Sequence[int], families: Sequence[str] = (), jobs: int = 0
) -> pd.DataFrame:
    """Run a task once per seed; return the lowest and highest of each measure that has a bar.

    Returns
    -------
    pandas.DataFrame
        Columns ``model``, ``measure``, ``bar``, ``lowest``, ``highest`` and ``missed``, the number of seeds that
        did not reach the bar.
    """
    checks: dict[tuple[str, str], list[Check]] = {}
    for seed in seeds:
        folder = output / task.name / str(seed)
        _share_classifiers(folder)
        verdict = validate(reseeded(task, seed), folder, families=families, jobs=jobs)
        for check in (check for result in verdict.results for check in verdict.checks(result)):
            checks.setdefault((check.trial, check.measure), []).append(check)
    return pd.DataFrame(
        [
            {
                "model": trial,
                "measure": measure,
                "bar": str(of_seeds[0].bar),
                "lowest": f"{min(check.found for check in of_seeds):.3g}",
                "highest": f"{max(check.found for check in of_seeds):.3g}",
                "missed": f"{sum(not check.met for check in of_seeds)} of {len(of_seeds)}",
            }
            for (trial, measure), of_seeds in checks.items()
        ]
    )


def _share_classifiers(folder: Path) -> None:
    """Bring the classifiers that other seeds have trained: they are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for known in folder.parent.glob("*/classifier-*.safetensors"):
        if not (folder / known.name).exists():
            (folder / known.name).hardlink_to(known)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", help="a shipped validation task, or a YAML file")
    parser.add_argument("-o", "--output", type=Path, default=Path("validation/spread"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--family", action="append", default=[], help="only this family or trial; may be repeated")
    parser.add_argument("--jobs", type=int, default=0, help=f"trials at a time; 0 = one per core ({cores()})")
    chosen = parser.parse_args()
    task = load_settings(find_config(chosen.task, "validation"))
    print(markdown(run_spread(task, chosen.output, chosen.seeds, chosen.family, chosen.jobs)))


if __name__ == "__main__":
    main()
