"""Every shipped model config resolves, belongs to a registered family and says only what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.bundle.config import ExperimentConfig, load_experiment
from anomaly.core.config import EXTENDS, load_yaml
from anomaly.models import registry
from pipelines.common import shipped_configs

CONFIGS = shipped_configs("models")
CHAINS = shipped_configs("preprocessing")
CLOSED_FORM = {"atlas", "pca", "intensity"}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def resolved(path: Path) -> ExperimentConfig:
    return load_experiment(path, CHAINS, CONFIGS)


def test_every_family_has_a_config_and_a_small_one() -> None:
    assert set(registry.FAMILIES) | {f"{family}-small" for family in registry.FAMILIES} <= CONFIGS.keys()


def test_a_config_names_its_file_and_a_chain_that_exists(path: Path) -> None:
    values = load_yaml(path)
    assert values["name"] == path.stem
    assert values["preprocessing"] in CHAINS


def test_a_small_config_is_of_the_family_it_extends(path: Path) -> None:
    values = load_yaml(path)
    assert (EXTENDS in values) == ("-" in path.stem)
    if EXTENDS in values:
        assert resolved(path).model["family"] == load_yaml(CONFIGS[values[EXTENDS]])["model"]["family"]


def test_a_resolved_config_trains_networks_and_only_networks(path: Path) -> None:
    config = resolved(path)
    assert (config.training is None) == (config.model["family"] in CLOSED_FORM)


def test_no_config_repeats_a_value_of_the_config_it_extends(path: Path) -> None:
    values = load_yaml(path)
    if EXTENDS in values:
        base = resolved(CONFIGS[values[EXTENDS]]).model_dump(mode="json")
        for section in {"model", "training", "scoring"} & values.keys():
            assert repeated(values[section], base[section]) == []


def test_every_key_of_a_section_has_a_comment(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("  ")]
    assert all("#" in line for line in lines if "family:" not in line), path


def repeated(values: dict[str, object], base: dict[str, object]) -> list[str]:
    """Return the keys whose values are those of the base."""
    found = []
    for key, value in values.items():
        inherited = base[key]
        if isinstance(value, dict) and isinstance(inherited, dict):
            found += repeated(value, inherited)
        elif value == inherited:
            found.append(key)
    return found
