"""Settings of a benchmark: its scans, models and planted lesions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field, model_validator

from anomaly.core.config import Settings, load_extended_yaml
from anomaly.core.errors import unknown_name
from anomaly.scoring.ensemble import MergeSettings
from pipelines.benchmark.planted_lesions import PlantedSettings
from pipelines.benchmark.tables import Entry
from pipelines.common import shipped_configs


class SplitSettings(Settings):
    """Shares of the subjects in each split; the rest is unused. Splits in the manifest take precedence."""

    train: float = Field(default=0.655, gt=0, lt=1, description="share of the subjects that train the models")
    calibration: float = Field(default=0.155, gt=0, lt=1, description="share that calibrates the models")
    test: float = Field(default=0.19, gt=0, lt=1, description="share that tests the models")
    seed: int = Field(default=0, description="seed of the random split")


class EnsembleSettings(MergeSettings):
    """An ensemble of models of the benchmark."""

    members: tuple[str, ...] = Field(
        min_length=2,
        description="names of models, <name>-seed<k> for one with seeds; the first gives the reconstruction",
    )

    @property
    def merge(self) -> MergeSettings:
        """The settings of the merging, without the members."""
        return MergeSettings(how=self.how, p_values=self.p_values, weights=self.weights)


class BenchmarkSettings(Settings):
    """A benchmark: data, splits, models and lesions."""

    name: str = Field(description="what the benchmark is called in its tables")
    healthy: Path = Field(description="healthy scans, relative to --data")
    preprocessing: str = Field(description="preprocessing config, shared by all models")
    models: tuple[str, ...] = Field(min_length=1, description="model configs: shipped names, or YAML files")
    baselines: tuple[str, ...] = Field(default=(), description="which of the models are baselines")
    seeds: dict[str, tuple[int, ...]] = Field(
        default_factory=dict, description="by model: the seeds to train it with, instead of the seed of its config"
    )
    ensembles: dict[str, EnsembleSettings] = Field(
        default_factory=dict, description="by name: trained models to merge"
    )
    split: SplitSettings = Field(default=SplitSettings(), description="split of subjects that have none yet")
    planted: PlantedSettings = Field(default=PlantedSettings(), description="synthetic lesions in test scans")
    cases: Path | None = Field(default=None, description="real cases with masks, relative to --data")
    alphas: tuple[float, ...] = Field(default=(0.05, 0.10), description="target false-positive rates")

    @model_validator(mode="after")
    def _names_are_known(self) -> BenchmarkSettings:
        models = [Path(config).stem for config in self.models]
        _refuse_unknown("baselines", (Path(config).stem for config in self.baselines), models)
        _refuse_unknown("seeds", self.seeds, models)
        trained = [name for _, _, name in self.trainings]
        for name, merged in self.ensembles.items():
            _refuse_unknown(f"ensembles.{name}.members", merged.members, trained)
            _refuse_unknown(f"ensembles.{name}.weights", merged.weights, list(merged.members))
        names = [*trained, *self.ensembles]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"found {', '.join(twice)} more than once; expected a different name for each model")
        return self

    @property
    def trainings(self) -> Iterator[tuple[str, int | None, str]]:
        """Yield config, seed (None = that of the config) and name of each model to train."""
        for config in self.models:
            name = Path(config).stem
            seeds = self.seeds.get(name, ())
            yield from ((config, seed, f"{name}-seed{seed}") for seed in seeds)
            if not seeds:
                yield config, None, name

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Entries of the tables: models in the order of the config, then ensembles."""
        baselines = {Path(config).stem for config in self.baselines}
        rows = []
        for config in self.models:
            stem = Path(config).stem
            trained = tuple(name for trained_config, _, name in self.trainings if trained_config == config)
            label = f"{stem} ({len(trained)} seeds)" if len(trained) > 1 else trained[0]
            rows.append(Entry(label, trained, "baseline" if stem in baselines else "family"))
        return (*rows, *(Entry(name, (name,), "ensemble") for name in self.ensembles))


def load_benchmark(path: Path) -> BenchmarkSettings:
    """Read the settings of a benchmark and of the one that it extends, a shipped name or a YAML file.

    Raises
    ------
    ConfigError
        A file cannot be read, or a key or a value is not valid.
    """
    return BenchmarkSettings.parse(load_extended_yaml(path, shipped_configs("benchmarks")), where=str(path))


def _refuse_unknown(what: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: {unknown_name('model', name, known)}")
