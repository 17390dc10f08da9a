from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anomaly.bundle.config import ExperimentConfig
from anomaly.core.errors import ConfigError
from pipelines.common import shipped_configs
from pipelines.info import as_text, describe, facts, full_config
from tests.pipelines.conftest import Trained


def test_what_is_installed_lists_every_family_and_config() -> None:
    found = facts()
    assert {"dae", "f_anogan", "stacked_ae", "conv_lstm_ae"} <= found["families"].keys()
    assert found["configs"]["models"] == list(shipped_configs("models"))


def test_the_full_config_of_a_shipped_name_is_complete_yaml_with_comments() -> None:
    text = full_config("dae-small")
    config = ExperimentConfig.parse(yaml.safe_load(text), "dae-small")
    assert config.name == "dae-small"
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    assert "learning_rate: 0.003  # " in text


def test_the_full_config_of_a_model_is_the_one_it_was_trained_with(trained: Trained) -> None:
    found = yaml.safe_load(full_config(str(trained.model)))
    assert found == yaml.safe_load((trained.model / "config.yaml").read_text(encoding="utf-8"))


def test_an_earlier_name_of_a_config_is_accepted() -> None:
    assert describe("gan-small")["family"] == "f_anogan"
    assert yaml.safe_load(full_config("stacked"))["name"] == "stacked_ae"


def test_an_unknown_config_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="f_anogan"):
        full_config("f_anogen")


def test_shipped_models_are_listed_and_described_by_name(shipped_model: Path) -> None:
    assert facts()["models"] == {"default": str(shipped_model)}
    assert "default" in as_text(facts()).split("Shipped models")[1].split("Families")[0]
    found = describe("default")
    assert (found["name"], found["folder"], found["licence"]) == ("default", str(shipped_model), "CC0")
    assert found["target_false_positive_rates"] == "0.05, 0.1"
    assert "family: atlas" in full_config("default")
