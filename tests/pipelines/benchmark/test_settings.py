from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomaly.core.errors import ConfigError
from pipelines.benchmark.settings import BenchmarkSettings, load_benchmark
from pipelines.benchmark.tables import Entry
from pipelines.common import shipped_configs


def settings(**changed: Any) -> BenchmarkSettings:
    values = {"name": "b", "healthy": "ixi", "preprocessing": "t1w", "models": ["dae", "my/vae.yaml", "pca"]}
    return BenchmarkSettings.parse(values | {"baselines": ["pca"]} | changed, "b.yaml")


def test_a_model_with_seeds_is_trained_once_for_each() -> None:
    chosen = settings(seeds={"vae": [3, 4]}, ensembles={"all": {"members": ["dae", "vae-seed4"]}})

    assert list(chosen.trainings) == [
        ("dae", None, "dae"),
        ("my/vae.yaml", 3, "vae-seed3"),
        ("my/vae.yaml", 4, "vae-seed4"),
        ("pca", None, "pca"),
    ]
    assert chosen.entries == (
        Entry("dae", ("dae",)),
        Entry("vae (2 seeds)", ("vae-seed3", "vae-seed4")),
        Entry("pca", ("pca",), "baseline"),
        Entry("all", ("all",), "ensemble"),
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baselines": ["atlas"]}, "baselines: unknown model 'atlas'; valid: dae, pca, vae"),
        ({"seeds": {"atlas": [0]}}, "seeds: unknown model 'atlas'; valid: dae, pca, vae"),
        (
            {"seeds": {"vae": [0]}, "ensembles": {"all": {"members": ["dae", "vae"]}}},
            r"ensembles\.all\.members: unknown model 'vae'; valid: dae, pca, vae-seed0",
        ),
        ({"ensembles": {"all": {"members": ["dae", "pca"], "weights": {"vae": 2}}}}, r"all\.weights: .* 'vae'"),
        ({"ensembles": {"pca": {"members": ["dae", "vae"]}}}, "found pca more than once"),
        ({"ensembles": {"all": {"members": ["dae"]}}}, "at least 2 items"),
    ],
)
def test_unknown_names_of_models_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changed)


def test_a_benchmark_that_extends_a_shipped_one_has_its_values(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: sample\nname: mine\nplanted: {per_subject: 4}\n", encoding="utf-8")
    mine, sample = load_benchmark(path), load_benchmark(shipped_configs("benchmarks")["sample"])

    assert (mine.name, mine.planted.per_subject) == ("mine", 4)
    assert mine.planted == sample.planted.model_copy(update={"per_subject": 4})
    assert (mine.models, mine.split, mine.ensembles) == (sample.models, sample.split, sample.ensembles)


def test_a_benchmark_that_extends_an_unknown_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: samples\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown extends 'samples'; valid: families, ixi, sample"):
        load_benchmark(path)
