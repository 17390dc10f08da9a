"""What a benchmark compares, on which scans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field, model_validator

from anomaly.core.config import Settings
from anomaly.core.errors import unknown_name
from anomaly.scoring.ensemble import MergeSettings
from pipelines.benchmark.planted_lesions import PlantedSettings
from pipelines.benchmark.tables import Entry


class SplitSettings(Settings):
    """How many subjects go where; the rest is left out. Subjects the manifest has split already stay there."""

    train: float = Field(default=0.655, gt=0, lt=1, description="share of the subjects")
    calibration: float = Field(default=0.155, gt=0, lt=1)
    test: float = Field(default=0.19, gt=0, lt=1)
    seed: int = 0


class EnsembleOf(MergeSettings):
    """Models of the benchmark that are merged into one."""

    members: tuple[str, ...] = Field(
        min_length=2,
        description="names of the models, <name>-seed<k> where there are seeds; the first shows its maps",
    )

    @property
    def merge(self) -> MergeSettings:
        """How they are merged."""
        return MergeSettings(how=self.how, p_values=self.p_values, weights=self.weights)


class BenchmarkSettings(Settings):
    """A benchmark: data, split, models, lesions."""

    name: str
    healthy: Path = Field(description="healthy scans, relative to --data")
    preprocessing: str = Field(description="the chain all models share")
    models: tuple[str, ...] = Field(min_length=1, description="model configs: shipped names, or YAML files")
    baselines: tuple[str, ...] = Field(default=(), description="which of the models are baselines")
    seeds: dict[str, tuple[int, ...]] = Field(
        default_factory=dict, description="models trained once for each seed, instead of once with their own"
    )
    ensembles: dict[str, EnsembleOf] = Field(
        default_factory=dict, description="by name: models that are merged when they are trained"
    )
    split: SplitSettings = SplitSettings()
    planted: PlantedSettings = PlantedSettings()
    cases: Path | None = Field(default=None, description="real cases with masks, relative to --data")
    alphas: tuple[float, ...] = (0.05, 0.10)

    @model_validator(mode="after")
    def _names_are_known(self) -> BenchmarkSettings:
        models = [Path(config).stem for config in self.models]
        _refuse_unknown("baselines", (Path(config).stem for config in self.baselines), models)
        _refuse_unknown("seeds", self.seeds, models)
        trained = [name for _, _, name in self.trainings]
        for name, of in self.ensembles.items():
            _refuse_unknown(f"ensembles.{name}.members", of.members, trained)
            _refuse_unknown(f"ensembles.{name}.weights", of.weights, list(of.members))
        names = [*trained, *self.ensembles]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"found {', '.join(twice)} more than once; expected a name of its own for each model")
        return self

    @property
    def trainings(self) -> Iterator[tuple[str, int | None, str]]:
        """Config, seed (None = its own) and name of each model to be trained."""
        for config in self.models:
            name = Path(config).stem
            seeds = self.seeds.get(name, ())
            yield from ((config, seed, f"{name}-seed{seed}") for seed in seeds)
            if not seeds:
                yield config, None, name

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The rows of the tables: models, in their order, then ensembles."""
        baselines = {Path(config).stem for config in self.baselines}
        rows = []
        for config in self.models:
            stem = Path(config).stem
            trained = tuple(name for of, _, name in self.trainings if of == config)
            label = f"{stem} ({len(trained)} seeds)" if len(trained) > 1 else trained[0]
            rows.append(Entry(label, trained, "baseline" if stem in baselines else "family"))
        return (*rows, *(Entry(name, (name,), "ensemble") for name in self.ensembles))


def _refuse_unknown(what: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: {unknown_name('model', name, known)}")
