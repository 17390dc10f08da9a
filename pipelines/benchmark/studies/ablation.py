"""What choices made before training are worth: short trainings of one config, each with one setting changed.

Each variant learns from the benchmark's training scans for fewer steps than its config says, and is asked for
planted lesions of real shape in the subjects that training held out; no test scan is touched. What has been trained
and measured is not done again, so an interrupted call continues::

    python -m pipelines.benchmark.studies.ablation work/ixi --config ae --steps 1000 --vary
    model.view.neighbours=1,2

One training is not another: ``--vary training.seed=1,2`` says how much that alone makes.
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
from pipelines.benchmark.studies.evidence import benchmark_parser, found_by, open_model, planted, shown
from pipelines.common import find_config, shipped_configs
from pipelines.train import train

Changes = Mapping[str, Sequence[Any]]
"""Setting → the values it is given in turn, e.g. ``{"model.view.neighbours": [1, 2]}``."""

PUBLISHED: Mapping[str, Changes] = {
    "dae": {
        "model.corruption.noise_kind": ["simplex"],
        "model.corruption.noise_probability": [0.0],
    },
    "ae": {"model.view.neighbours": [1, 2]},
}
"""What docs/benchmarks.md shows."""
STEPS = 500


def ablation(
    config: str | Path,
    changes: Changes,
    cohort: Path,
    shapes: Path,
    output: Path,
    *,
    steps: int = STEPS,
    device: str = "auto",
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """Return voxel AP and best Dice of a config as it is, and of each of its variants.

    Parameters
    ----------
    config
        A shipped name, or the path of a YAML file.
    changes
        One at a time, the others as they are.
    cohort
        The benchmark's cohort.
    shapes
        Folder of lesion masks in MNI space.
    output
        Every variant has a folder here, named by what its config says.
    steps
        Of each training.
    """
    path, rows = find_config(config, "models"), []
    for name, variant in list(variants(path, changes, steps)):
        folder = output / f"{path.stem}-{sha256_of_json(variant)[:12]}"
        if not (folder / "row.json").is_file():
            write_text(folder / "config.yaml", yaml.safe_dump(variant, sort_keys=False, allow_unicode=True))
            write_json(folder / "row.json", measured(folder, cohort, shapes, device, progress))
        rows.append({"config": path.stem, "variant": name, **read_json(folder / "row.json")})
    return pd.DataFrame(rows)


def variants(path: Path, changes: Changes, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the whole config of each variant, the unchanged one first.

    Raises
    ------
    ConfigError
        If a setting or a value is not valid.
    """
    base = load_experiment(path, shipped_configs("preprocessing")).model_dump(mode="json")
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


def measured(folder: Path, cohort: Path, shapes: Path, device: str, progress: Progress) -> dict[str, float]:
    """Train the config in a folder, unless an earlier call has, and return what its evidence finds."""
    bundle = folder / "model"
    if not (bundle / "metadata.json").is_file():
        train(folder / "config.yaml", cohort, bundle, device=device, progress=progress)
    model = open_model(bundle, cohort)
    found = found_by({"": model.scorer}, planted(model, shapes)).drop(columns="evidence").iloc[0]
    training = read_json(bundle / "metadata.json")["training"]
    return {
        **{str(name): float(value) for name, value in found.items()},
        "best step": int(training["validation"]["best_step"]),
        "minutes": training["seconds"] / 60,
    }


def _set(config: dict[str, Any], setting: str, value: Any) -> None:
    *sections, last = setting.split(".")
    for name in sections:
        config = _inside(config, name, setting)
    _inside(config, last, setting)
    config[last] = value


def _inside(config: Any, name: str, setting: str) -> Any:
    if not isinstance(config, dict) or name not in config:
        valid = list(config) if isinstance(config, dict) else []
        raise ConfigError(f"{setting}: " + unknown_name("setting", name, valid))
    return config[name]


def main() -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config", default="dae", help="a shipped config, or a YAML file")
    parser.add_argument("--vary", action="append", metavar="SETTING=VALUE,…", help="default: what the docs show")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    pairs = [text.partition("=") for text in chosen.vary or ()]
    changes = {name: yaml.safe_load(f"[{values}]") for name, _, values in pairs} or PUBLISHED.get(chosen.config, {})
    table = ablation(
        chosen.config,
        changes,
        chosen.output / "cohort",
        chosen.data / "lesion_shapes",
        chosen.output / "ablation",
        steps=chosen.steps,
        device=chosen.device,
    )
    print(shown(table))


if __name__ == "__main__":
    main()
