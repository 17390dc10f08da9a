from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.bundle.config import TYPICAL_LESIONS, ExperimentConfig, load_experiment, with_preprocessing
from anomaly.core.errors import ConfigError
from pipelines.common import shipped_configs
from pipelines.ingest import load_chain


def read(path: Path, text: str) -> ExperimentConfig:
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, shipped_configs("preprocessing"), shipped_configs("models"))


def test_a_config_of_an_earlier_version_is_read_under_its_present_names(tmp_path: Path) -> None:
    text = (
        "name: mine\npreprocessing: t1w\nmodel: {family: dae, severity_weight: 3.0, components: 4}\n"
        "training: {steps: 5}\nscoring: {maps: {severity: 2.0, residual: 1.0, departure: 1.0}}\n"
    )
    config = read(tmp_path / "mine.yaml", text)
    assert config.model["change_logit_weight"] == 3.0
    assert list(config.scoring.maps) == ["change_logit", "residual", "mean_deviation"]


def test_a_config_that_extends_a_shipped_one_has_its_values(tmp_path: Path) -> None:
    config = read(tmp_path / "mine.yaml", "extends: dae\nname: mine\ntraining: {steps: 7}\n")
    shipped = read(tmp_path / "same.yaml", "extends: dae\n")
    assert config.name == "mine"
    assert config.training is not None
    assert config.training.steps == 7
    assert config.model == shipped.model


def test_a_chain_written_in_the_config_can_extend_a_shipped_one(tmp_path: Path) -> None:
    text = "extends: atlas\npreprocessing: {extends: ct, grid: {spacing_mm: 4}}\n"
    chain = read(tmp_path / "mine.yaml", text).preprocessing
    assert chain.grid.spacing_mm == 4
    assert chain.intensity == load_chain("ct").intensity


def test_an_unknown_chain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="t1w-4mm"):
        read(tmp_path / "mine.yaml", "extends: dae\npreprocessing: t1w-5mm\n")


@pytest.mark.parametrize(("chain", "least"), [("ct", 0.0), ("flair", 0.4), ("t2w", 0.4)])
def test_a_chain_for_another_modality_changes_what_depends_on_it(tmp_path: Path, chain: str, least: float) -> None:
    config = read(tmp_path / "mine.yaml", "extends: vae\n")
    changed = with_preprocessing(config, load_chain(chain))
    assert changed.lesion_kinds == TYPICAL_LESIONS[changed.modality]
    assert changed.scoring.min_block_correlation == least
    assert changed.description.endswith(f"(settings of T1w), trained on {changed.modality.value}")
    assert changed.training == config.training


def test_a_smallest_similarity_that_was_set_stays_with_a_chain_of_the_same_modality(tmp_path: Path) -> None:
    config = read(tmp_path / "mine.yaml", "extends: vae\nscoring: {min_block_correlation: 0.7}\n")
    assert with_preprocessing(config, load_chain("t1w-4mm")).scoring.min_block_correlation == 0.7


def test_another_chain_leaves_the_rest_of_the_experiment_alone(tmp_path: Path) -> None:
    config = read(tmp_path / "mine.yaml", "extends: dae\n")
    changed = with_preprocessing(config, load_chain("t1w-4mm"))
    assert changed.preprocessing.grid.spacing_mm == 4
    assert changed.model_copy(update={"preprocessing": config.preprocessing}) == config


@pytest.mark.parametrize(
    ("chain", "kinds"),
    [("t1w", {"dark", "bright", "texture"}), ("ct", {"haemorrhage", "subdural", "dark"})],
)
def test_lesions_that_choose_the_checkpoint_are_typical_of_the_modality(
    chain: str, kinds: set[str], tmp_path: Path
) -> None:
    config = read(tmp_path / "mine.yaml", f"name: mine\npreprocessing: {chain}\nmodel: {{family: atlas}}\n")
    assert set(config.lesion_kinds) == kinds
