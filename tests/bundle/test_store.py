from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from anomaly.bundle.store import (
    TrainedBundle,
    hash_subject,
    load_bundle,
    refuse_to_overwrite,
    save_bundle,
    verified_metadata,
    write_metadata,
)
from anomaly.core.errors import BundleError
from anomaly.core.files import read_json, sha256_of_file, write_json
from anomaly.models.registry import create
from anomaly.scoring.scorer import Scorer
from tests.bundle.factory import FACTS, TRAINING_SCANS, config_of, save_small_bundle, trained_scorer
from tests.models.factories import GRID, healthy_scan


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TrainedBundle:
    return save_small_bundle(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture
def copied(bundle: TrainedBundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "copy"))


def test_a_loaded_model_scores_as_the_saved_one(bundle: TrainedBundle, tmp_path: Path) -> None:
    scorer = trained_scorer(config_of(), tmp_path)
    voxels, mask = healthy_scan(99)
    expected, found = scorer.score(voxels, mask), bundle.scorer.score(voxels, mask)
    np.testing.assert_array_equal(found.evidence, expected.evidence)
    assert found.scores == expected.scores
    assert bundle.config == config_of()
    assert bundle.grid.shape == GRID.shape
    np.testing.assert_array_equal(bundle.grid.affine, GRID.affine)


def test_the_metadata_hold_the_facts_and_the_hash_of_every_file(bundle: TrainedBundle) -> None:
    metadata = read_json(bundle.folder / "metadata.json")
    assert {key: metadata[key] for key in FACTS} == FACTS
    assert metadata["hashes"] == {
        name: sha256_of_file(bundle.folder / name)
        for name in ("config.yaml", "weights.safetensors", "reference.safetensors", "training_subjects.json")
    }
    assert len(metadata["held_out_scores"]["reconstruction"]) == 6
    assert bundle.model_id == metadata["model_id"]
    assert len(bundle.model_id) == 12


def test_the_training_subjects_are_stored_as_hashes(bundle: TrainedBundle) -> None:
    seen = bundle.training_fingerprints()
    assert seen["subjects"] == sorted([hash_subject("sub-1"), hash_subject("sub-2")])
    assert seen["content_hashes"] == ["hash-a", "hash-b", "hash-c"]
    assert "sub-1" not in (bundle.folder / "training_subjects.json").read_text(encoding="utf-8")


def test_equal_models_have_the_same_id_and_other_settings_another(bundle: TrainedBundle, tmp_path: Path) -> None:
    assert save_small_bundle(tmp_path / "again").model_id == bundle.model_id
    assert save_small_bundle(tmp_path / "other", name="other").model_id != bundle.model_id


def test_a_folder_with_a_model_is_not_overwritten(bundle: TrainedBundle, tmp_path: Path) -> None:
    refuse_to_overwrite(tmp_path)
    with pytest.raises(BundleError, match="already holds a model; choose another output folder"):
        save_bundle(bundle.folder, bundle.config, bundle.scorer, TRAINING_SCANS, FACTS)


def test_a_model_without_a_healthy_reference_is_not_saved(tmp_path: Path) -> None:
    config = config_of()
    scorer = Scorer(create(config.model_settings(), GRID), config.scoring)
    with pytest.raises(BundleError, match="without a healthy reference cannot be saved"):
        save_bundle(tmp_path / "model", config, scorer, TRAINING_SCANS, FACTS)


@pytest.mark.parametrize(
    "name", ["config.yaml", "weights.safetensors", "reference.safetensors", "training_subjects.json"]
)
def test_a_model_with_an_altered_or_missing_file_is_refused(copied: Path, name: str) -> None:
    file = copied / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(BundleError, match=rf"{name}: found .*, expected .*altered or damaged"):
        load_bundle(copied)
    file.unlink()
    with pytest.raises(BundleError, match=rf"{name}: found no such fil"):
        verified_metadata(copied)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no model \(no metadata\.json\)"):
        load_bundle(tmp_path)


def test_a_model_of_another_format_is_refused(copied: Path) -> None:
    metadata = read_json(copied / "metadata.json")
    write_json(copied / "metadata.json", metadata | {"format_version": 2})
    with pytest.raises(BundleError, match="found format version 2, expected 1"):
        load_bundle(copied)


def test_weights_of_another_network_are_refused(copied: Path) -> None:
    weights = load_file(copied / "weights.safetensors")
    name = next(iter(weights))
    save_file({"unknown": weights.pop(name), **weights}, copied / "weights.safetensors")
    metadata = read_json(copied / "metadata.json")
    hashes = metadata["hashes"] | {"weights.safetensors": sha256_of_file(copied / "weights.safetensors")}
    write_json(copied / "metadata.json", metadata | {"hashes": hashes})
    with pytest.raises(BundleError, match=r"the weights do not fit the model of config\.yaml"):
        load_bundle(copied)


def test_an_ensemble_is_no_trained_model(tmp_path: Path) -> None:
    write_metadata(tmp_path, (), GRID, {"family": "ensemble", "members": {"a": "1", "b": "2"}})
    with pytest.raises(
        BundleError, match=r"is an ensemble, expected a trained model; give its members: .*/members/a"
    ):
        load_bundle(tmp_path)
