"""Every shipped model config is complete and belongs to a registered family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly.models import registry
from anomaly.training.settings import TrainingSettings
from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs" / "models").glob("*.yaml"))
CLOSED_FORM = {"atlas", "pca", "intensity"}


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_every_family_has_a_config_and_a_small_one() -> None:
    names = {path.stem for path in CONFIGS}
    assert set(registry.FAMILIES) | {f"{family}-small" for family in registry.FAMILIES} <= names


def test_a_config_names_its_file_and_a_chain_that_exists(path: Path) -> None:
    values = read(path)
    assert values["name"] == path.stem
    assert (REPOSITORY / "configs" / "preprocessing" / f"{values['preprocessing']}.yaml").is_file()


def test_every_key_of_the_model_is_written_out(path: Path) -> None:
    model = read(path)["model"]
    assert registry.parse_settings(model, str(path)).model_dump(mode="json") == model


def test_every_key_of_the_training_is_written_out(path: Path) -> None:
    values = read(path)
    if values["model"]["family"] in CLOSED_FORM:
        assert "training" not in values
    else:
        assert TrainingSettings.parse(values["training"], str(path)).model_dump(mode="json") == values["training"]


def test_every_key_has_a_comment(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("  ")]
    assert all("#" in line for line in lines if "family:" not in line), path
