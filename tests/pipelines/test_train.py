from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from anomaly.bundle.store import load_bundle
from anomaly.core.errors import BundleError, CohortError, ConfigError
from anomaly.core.files import read_json, write_json
from pipelines.train import train
from tests.pipelines.cohorts import healthy, make_cohort, write_config
from tests.pipelines.conftest import Trained


def test_a_bundle_says_what_it_is_and_what_it_was_trained_on(trained: Trained) -> None:
    metadata = read_json(trained.model / "metadata.json")

    assert metadata["data"] == {
        "n_train": 12, "n_train_subjects": 12, "n_validation": 3, "n_validation_subjects": 3,
        "age_mean": 47.0, "age_min": 40.0, "age_max": 54.0,
    }  # fmt: skip
    card = (trained.model / "MODEL_CARD.md").read_text()
    assert "12 healthy scans of 12 subjects" in card
    assert "Research use only" in card
    assert metadata["model_id"] in card


def test_a_bundle_names_no_subject(trained: Trained) -> None:
    for path in trained.model.glob("*.json"):
        assert "sub-0" not in path.read_text()


def test_a_saved_bundle_gives_bit_identical_evidence_after_loading(trained: Trained) -> None:
    scan = healthy(500)
    first, second = (load_bundle(trained.model).scorer.score(*scan) for _ in range(2))

    np.testing.assert_array_equal(first.evidence, second.evidence)
    assert first.scores == second.scores


@pytest.mark.parametrize("name", ["weights.safetensors", "reference.safetensors", "config.yaml"])
def test_an_altered_bundle_is_refused(trained: Trained, tmp_path: Path, name: str) -> None:
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))
    content = bytearray((model / name).read_bytes())
    content[-1] ^= 1
    (model / name).write_bytes(content)

    with pytest.raises(BundleError, match=rf"{name}: found .* expected .* altered or damaged"):
        load_bundle(model)


def test_a_bundle_of_another_format_or_no_bundle_at_all_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no model"):
        load_bundle(tmp_path)
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))
    write_json(model / "metadata.json", read_json(model / "metadata.json") | {"format_version": 99})
    with pytest.raises(BundleError, match="found format version 99, expected 2"):
        load_bundle(model)


def test_a_model_is_never_overwritten(trained: Trained) -> None:
    with pytest.raises(BundleError, match="already holds a model"):
        train(trained.config, trained.training, trained.model)


def test_two_trainings_of_one_seed_agree(trained: Trained, tmp_path: Path) -> None:
    train(trained.config, trained.training, tmp_path / "again")

    first, second = (load_bundle(model).metadata for model in (trained.model, tmp_path / "again"))
    for name in ("config.yaml", "weights.safetensors", "reference.safetensors"):
        assert first["hashes"][name] == second["hashes"][name]
    for name in ("grid", "score_mean", "score_std", "held_out_scores"):
        assert first[name] == second[name]


@pytest.mark.slow
def test_a_finished_training_leaves_its_logs_and_no_checkpoints(trained: Trained, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path / "ae.yaml", "ae", channels=[8, 16], latent_size=4).read_text())
    (tmp_path / "ae.yaml").write_text(yaml.safe_dump(config | {"training": {"steps": 2, "validate_every": 2}}))

    train(tmp_path / "ae.yaml", trained.training, tmp_path / "model", device="cpu")

    left = {path.suffix for path in (tmp_path / "model" / "training").rglob("*") if path.is_file()}
    assert ".csv" in left
    assert not left & {".ckpt", ".safetensors"}
    assert load_bundle(tmp_path / "model").metadata["training"]["steps"] == 2


def test_a_cohort_prepared_by_another_chain_is_refused(trained: Trained, tmp_path: Path) -> None:
    config = yaml.safe_load(trained.config.read_text())
    config["preprocessing"]["grid"]["spacing_mm"] = 3.0
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config))

    with pytest.raises(ConfigError, match=r"another chain .*different: grid"):
        train(other, trained.training, tmp_path / "model")


def test_the_chain_of_a_config_can_be_replaced(trained: Trained, tmp_path: Path) -> None:
    config = yaml.safe_load(trained.config.read_text())
    chain, other = tmp_path / "chain.yaml", tmp_path / "other.yaml"
    chain.write_text(yaml.safe_dump(config["preprocessing"]))
    config["preprocessing"]["grid"]["spacing_mm"] = 3.0
    other.write_text(yaml.safe_dump(config))

    train(other, trained.training, tmp_path / "model", preprocessing=chain)

    assert load_bundle(tmp_path / "model").config.preprocessing == load_bundle(trained.model).config.preprocessing


def test_only_the_train_split_is_learnt_from(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "test_only", range(5), split="test")

    with pytest.raises(CohortError, match="no accepted healthy T1w scan for split 'train'"):
        train(trained.config, cohort, tmp_path / "model")


@pytest.mark.parametrize("family", ["atlas", "ae"])
@pytest.mark.parametrize("subjects", [1, 2])
def test_too_few_subjects_are_refused(subjects: int, family: str, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", family)
    with pytest.raises(CohortError, match=rf"found {subjects} healthy subject\(s\).*at least 3.*ingest more"):
        train(config, make_cohort(tmp_path / "cohort", range(subjects)), tmp_path / "model", device="cpu")


@pytest.mark.slow
def test_three_subjects_are_the_least_a_network_learns_from(tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path / "ae.yaml", "ae", channels=[8, 16], latent_size=4).read_text())
    (tmp_path / "ae.yaml").write_text(yaml.safe_dump(config | {"training": {"steps": 2, "validate_every": 2}}))
    found = train(
        tmp_path / "ae.yaml", make_cohort(tmp_path / "cohort", range(3)), tmp_path / "model", device="cpu"
    )
    assert (found["train_scans"], found["validation_scans"]) == (2, 1)


def test_an_unfinished_cohort_is_refused(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(5))
    write_json(cohort / "cohort.json", read_json(cohort / "cohort.json") | {"complete": False})

    with pytest.raises(CohortError, match="not finished"):
        train(trained.config, cohort, tmp_path / "model")


def test_an_unknown_family_or_map_lists_the_valid_ones(tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"unknown family 'crystal'; valid: ae, atlas"):
        train(write_config(tmp_path / "a.yaml", "crystal"), trained.training, tmp_path / "model")
    config = yaml.safe_load(trained.config.read_text()) | {"scoring": {"maps": {"aura": 1.0}}}
    (tmp_path / "b.yaml").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"unknown map 'aura'; valid: .*residual"):
        train(tmp_path / "b.yaml", trained.training, tmp_path / "model")
