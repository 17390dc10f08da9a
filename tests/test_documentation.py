from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from anomaly.bundle.config import ExperimentConfig, annotated_config, load_experiment
from anomaly.bundle.ensemble import EnsembleConfig
from anomaly.core.config import Settings, description_of, load_yaml
from anomaly.core.errors import ConfigError
from anomaly.models.registry import FAMILIES, settings_class
from anomaly.scoring.scan_scores import SCORE_DESCRIPTIONS
from pipelines.benchmark.settings import BenchmarkSettings, load_benchmark
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


@pytest.mark.parametrize("score", SCORE_DESCRIPTIONS)
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
def test_a_shipped_chain_names_only_what_differs_from_the_defaults(name: str, tmp_path: Path) -> None:
    needless = _needless_keys(shipped_configs("preprocessing")[name], load_chain, tmp_path)
    assert set(needless) <= {"modality", "extends"}  # they tell a reader what the chain is for


@pytest.mark.parametrize("name", shipped_configs("benchmarks"))
def test_a_shipped_benchmark_names_only_what_differs_from_the_defaults(name: str, tmp_path: Path) -> None:
    assert _needless_keys(shipped_configs("benchmarks")[name], load_benchmark, tmp_path) == []


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


def _needless_keys(path: Path, load: Callable[[Path], Settings], folder: Path) -> list[str]:
    """Return the keys without which a config resolves to the same settings."""
    values, expected, shortened = load_yaml(path), load(path), folder / path.name
    needless = []
    for key in _keys(values):
        shortened.write_text(yaml.safe_dump(_without(values, key)), encoding="utf-8")
        try:
            same = load(shortened) == expected
        except ConfigError:
            same = False  # the key is required
        needless += [".".join(key)] * same
    return needless


def _keys(values: object) -> list[tuple[str, ...]]:
    """Return the path of every value in nested mappings."""
    if not isinstance(values, dict):
        return [()]
    return [(name, *rest) for name, value in values.items() for rest in _keys(value)]


def _without(values: dict[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
    """Return nested mappings without one value."""
    name, *rest = key
    kept = {other: value for other, value in values.items() if other != name}
    return kept | {name: _without(values[name], tuple(rest))} if rest else kept
