r"""Ablation of settings that must be set before training: short trainings, each with one setting changed.

Each variant is trained on the benchmark's training scans for fewer steps than its config says. It is then measured
on lesions of real shape, planted in the subjects that training held out; no test scan is used. Finished trainings
and measurements are kept, so an interrupted call continues::

    python -m pipelines.benchmark.studies.ablation work/ixi --config ae --steps 1000 \
        --vary model.view.neighbours=1,2

Trainings that differ only in their seed differ, too: ``--vary training.seed=1,2`` measures by how much.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from anomaly.bundle.config import ExperimentConfig, load_experiment
from anomaly.core.errors import ConfigError, unknown_name
from anomaly.core.files import read_json, sha256_of_json, write_json, write_text
from anomaly.core.progress import Progress, no_progress
from pipelines.benchmark.studies.common import (
    load_benchmark_model,
    plant_held_out_scans,
    study_parser,
    table_text,
)
from pipelines.benchmark.studies.evidence import detection_table
from pipelines.common import find_config, shipped_configs
from pipelines.train import train

Changes = Mapping[str, Sequence[Any]]
"""By setting, the values to try one after another, e.g. ``{"model.view.neighbours": [1, 2]}``."""

PUBLISHED: Mapping[str, Changes] = {
    "dae": {
        "model.corruption.noise_kind": ["simplex"],
        "model.corruption.noise_probability": [0.0],
    },
    "ae": {"model.view.neighbours": [1, 2]},
}
"""The variants in docs/benchmarks.md, by config."""
TRAINING_STEPS = 500


def ablation(
    config: str | Path,
    changes: Changes,
    cohort: Path,
    shapes: Path,
    output: Path,
    *,
    steps: int = TRAINING_STEPS,
    device: str = "auto",
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """Train and measure a config as shipped and each of its variants; return voxel AP and best Dice.

    Parameters
    ----------
    config
        A shipped name, or the path of a YAML file.
    changes
        Settings and values; each variant changes one of them.
    cohort
        The benchmark's cohort.
    shapes
        Folder of lesion masks in MNI space.
    output
        Each variant has a folder here, named by the hash of its config.
    steps
        Optimiser steps of each training.
    """
    path, rows = find_config(config, "models"), []
    for name, variant in list(variants(path, changes, steps)):
        folder = output / f"{path.stem}-{sha256_of_json(variant)[:12]}"
        if not (folder / "row.json").is_file():
            write_text(folder / "config.yaml", yaml.safe_dump(variant, sort_keys=False, allow_unicode=True))
            write_json(folder / "row.json", measure_variant(folder, cohort, shapes, device, progress))
        rows.append({"config": path.stem, "variant": name, **read_json(folder / "row.json")})
    return pd.DataFrame(rows)


def variants(path: Path, changes: Changes, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the complete config of each variant; the first is the config as shipped.

    Raises
    ------
    ConfigError
        A setting or a value is not valid, or the config has no training.
    """
    base = load_experiment(path, shipped_configs("preprocessing"), shipped_configs("models")).model_dump(
        mode="json"
    )
    if base["training"] is None:
        raise ConfigError(f"{path} has no section training; choose the config of a network")
    base["training"] |= {"steps": steps, "validate_every": max(1, steps // 4)}
    yield "as shipped", base
    for setting, values in changes.items():
        for value in values:
            variant = copy.deepcopy(base)
            _set(variant, setting, value)
            name = f"{setting}: {value}"
            yield f"`{name.lower()}`", ExperimentConfig.parse(variant, where=name).model_dump(mode="json")


def measure_variant(folder: Path, cohort: Path, shapes: Path, device: str, progress: Progress) -> dict[str, float]:
    """Train the config in a folder, unless that was done before, and return voxel AP and best Dice."""
    bundle = folder / "model"
    if not (bundle / "metadata.json").is_file():
        train(folder / "config.yaml", cohort, bundle, device=device, progress=progress)
    model = load_benchmark_model(bundle, cohort)
    table = detection_table({"": model.scorer}, plant_held_out_scans(model, shapes))
    training = read_json(bundle / "metadata.json")["training"]
    return {
        **{str(name): float(value) for name, value in table.drop(columns="evidence").iloc[0].items()},
        "best step": int(training["validation"]["best_step"]),
        "minutes": training["seconds"] / 60,
    }


def _set(config: dict[str, Any], setting: str, value: Any) -> None:
    *sections, last = setting.split(".")
    for name in sections:
        config = _section(config, name, setting)
    _section(config, last, setting)
    config[last] = value


def _section(config: Any, name: str, setting: str) -> Any:
    if not isinstance(config, dict) or name not in config:
        valid = list(config) if isinstance(config, dict) else []
        raise ConfigError(f"{setting}: " + unknown_name("setting", name, valid))
    return config[name]


def main() -> None:
    """Print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--config", default="dae", help="a shipped config, or a YAML file")
    parser.add_argument(
        "--vary", action="append", metavar="SETTING=VALUE,…", help="default: the variants in docs/benchmarks.md"
    )
    parser.add_argument("--steps", type=int, default=TRAINING_STEPS, help="optimiser steps of each training")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    pairs = [text.partition("=") for text in options.vary or ()]
    changes = {name: yaml.safe_load(f"[{values}]") for name, _, values in pairs} or PUBLISHED.get(
        options.config, {}
    )
    table = ablation(
        options.config,
        changes,
        options.output / "cohort",
        options.data / "lesion_shapes",
        options.output / "ablation",
        steps=options.steps,
        device=options.device,
    )
    print(table_text(table))


if __name__ == "__main__":
    main()
