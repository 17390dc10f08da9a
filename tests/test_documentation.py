from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anomaly.bundle.config import ExperimentConfig, load_experiment
from anomaly.models.registry import FAMILIES
from anomaly.scoring.scan_scores import SCORES
from pipelines.benchmark.run import BenchmarkSettings
from pipelines.cli import app
from pipelines.common import shipped_configs

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
def test_a_shipped_model_config_is_complete_and_every_key_has_a_comment(name: str) -> None:
    path = shipped_configs("models")[name]
    experiment = load_experiment(path, shipped_configs("preprocessing"))
    given, complete = yaml.safe_load(path.read_text()), experiment.model_dump(mode="json")

    assert _keys(given["model"]) == _keys(complete["model"])
    assert _keys(given["scoring"]) == _keys(complete["scoring"])
    if experiment.training is not None:
        assert _keys(given["training"]) == _keys(complete["training"])
    assert _lines_without_a_comment(path) == []


def test_a_shipped_benchmark_is_complete() -> None:
    for path in shipped_configs("benchmarks").values():
        settings = BenchmarkSettings.parse(yaml.safe_load(path.read_text()), str(path))
        assert _keys(yaml.safe_load(path.read_text())) == _keys(settings.model_dump(mode="json"))


def test_every_setting_of_an_experiment_describes_itself() -> None:
    for name, field in ExperimentConfig.model_fields.items():
        assert field.description or name in {"training", "scoring"}


def _keys(values: object, prefix: str = "") -> set[str]:
    if not isinstance(values, dict) or prefix.endswith("maps."):
        return {prefix}
    return {key for name, value in values.items() for key in _keys(value, f"{prefix}{name}.")}


def _lines_without_a_comment(path: Path) -> list[str]:
    """Return the setting lines that carry no comment; the sections and the first lines explain themselves."""
    plain = ("name:", "description:", "family:", "#")
    return [
        line
        for line in path.read_text().splitlines()
        if line.strip()
        and "#" not in line
        and not line.strip().endswith(":")
        and not line.strip().startswith(plain)
    ]
