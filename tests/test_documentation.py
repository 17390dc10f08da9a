from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from anomaly.bundle.config import ExperimentConfig, annotated_config, load_experiment
from anomaly.bundle.ensemble import EnsembleConfig
from anomaly.core.config import description_of
from anomaly.models.registry import FAMILIES, settings_class
from anomaly.scoring.scan_scores import SCORES
from pipelines.benchmark.run import BenchmarkSettings
from pipelines.cli import app
from pipelines.common import shipped_configs
from pipelines.ingest import load_chain

DOCS = Path(__file__).resolve().parents[1] / "docs"
GUIDE = (DOCS / "guide.md").read_text(encoding="utf-8")
VERBS = [str(command.callback.__name__) for command in app.registered_commands if command.callback]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_guide(verb: str) -> None:
    assert f"anomaly {verb}" in GUIDE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_in_the_guide_and_has_a_config_and_a_small_one(family: str) -> None:
    assert f"`{family}`" in GUIDE
    assert {family, f"{family}-small"} <= set(shipped_configs("models"))


@pytest.mark.parametrize("score", SCORES)
def test_every_scan_score_is_in_the_guide(score: str) -> None:
    assert f"`{score}`" in GUIDE


@pytest.mark.parametrize("kind", ["models", "preprocessing", "benchmarks", "validation"])
def test_every_shipped_config_is_in_the_guide(kind: str) -> None:
    assert [name for name in shipped_configs(kind) if f"`{name}`" not in GUIDE] == []


@pytest.mark.parametrize("name", shipped_configs("models"))
def test_every_key_of_a_complete_config_has_its_description_as_comment(name: str) -> None:
    experiment = load_experiment(
        shipped_configs("models")[name], shipped_configs("preprocessing"), shipped_configs("models")
    )
    text = annotated_config(experiment)

    assert yaml.safe_load(text) == experiment.model_dump(mode="json")
    assert [line for line in text.splitlines() if "  # " not in line] == []


@pytest.mark.parametrize("name", shipped_configs("preprocessing"))
def test_a_shipped_chain_resolves(name: str) -> None:
    assert load_chain(name).modality.value in {"T1w", "CT"}


def test_a_shipped_benchmark_is_complete() -> None:
    for path in shipped_configs("benchmarks").values():
        settings = BenchmarkSettings.parse(yaml.safe_load(path.read_text()), str(path))
        assert _keys(yaml.safe_load(path.read_text())) == _keys(settings.model_dump(mode="json"))


@pytest.mark.parametrize(
    "settings", [ExperimentConfig, EnsembleConfig, BenchmarkSettings, *map(settings_class, FAMILIES)]
)
def test_every_setting_has_a_description(settings: type[BaseModel]) -> None:
    assert [
        name for cls in _with_nested(settings) for name in cls.model_fields if not description_of(cls, name)
    ] == []


def _with_nested(settings: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a settings class and the classes of its fields."""
    yield settings
    annotations: list[Any] = [field.annotation for field in settings.model_fields.values()]
    while annotations:
        found = annotations.pop()
        if isinstance(found, type) and issubclass(found, BaseModel):
            yield from _with_nested(found)
        annotations += get_args(found)


def _keys(values: object, prefix: str = "") -> set[str]:
    if not isinstance(values, dict) or prefix.endswith("maps."):
        return {prefix}
    return {key for name, value in values.items() for key in _keys(value, f"{prefix}{name}.")}
