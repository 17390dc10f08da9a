from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from anomaly.bundle import shipped
from anomaly.bundle.store import (
    TrainedBundle,
    copy_model,
    facts_of,
    interrupted_model,
    load_bundle,
    refuse_to_overwrite,
    save_bundle,
    verified_metadata,
    write_metadata,
)
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.core.audit_log import append_entry
from anomaly.core.errors import BundleError, DamagedFileError
from anomaly.core.files import read_json, sha256_of_file, sha256_of_json, write_json
from anomaly.models.registry import create
from anomaly.scoring.scorer import Scorer
from tests.bundle.factory import FACTS, TRAINING_SCANS, config_of, save_small_bundle, to_format_1, trained_scorer
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
    seen = bundle.training_subjects()
    assert (seen.n_subjects, seen.contains("sub-1"), seen.contains("sub-3")) == (2, True, False)
    assert seen.content_hashes == {"hash-a", "hash-b", "hash-c"}
    assert "sub-1" not in (bundle.folder / "training_subjects.json").read_text(encoding="utf-8")


def test_equal_models_have_equal_weights_and_ids_of_their_own(bundle: TrainedBundle, tmp_path: Path) -> None:
    again, other = save_small_bundle(tmp_path / "again"), save_small_bundle(tmp_path / "other", name="other")
    for name in ("config.yaml", "weights.safetensors", "reference.safetensors"):
        assert again.metadata["hashes"][name] == bundle.metadata["hashes"][name]
    assert len({bundle.model_id, again.model_id, other.model_id}) == 3  # their training subjects are salted


def test_the_metadata_hold_their_own_hash_and_the_model_id_is_one_without_provenance(bundle: TrainedBundle) -> None:
    metadata = read_json(bundle.folder / "metadata.json")
    assert metadata.pop("metadata_sha256") == sha256_of_json(metadata)
    assert metadata.pop("model_id") == sha256_of_json(metadata)[:12]


def test_when_and_by_whom_a_model_was_made_is_not_in_its_id(tmp_path: Path) -> None:
    facts = [{"name": "small", "created_at": day, "user_name": day, "training": {"seconds": day}} for day in "ab"]
    first, second = (write_metadata(tmp_path / day["name"], (), GRID, day) for day in facts)
    assert first == second != write_metadata(tmp_path / "other", (), GRID, {"name": "large"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_id", "0" * 12),
        ("metadata_sha256", "0" * 64),
        ("metadata_sha256", None),
        ("grid", {"shape": [1, 1, 1], "affine": np.eye(4).tolist()}),
        ("score_mean", {"reconstruction": 0.0}),
        ("score_std", {"reconstruction": 9.0}),
        ("held_out_scores", {}),
        ("name", "renamed"),
        ("family", "pca"),
        ("hashes", {}),
        ("added", 1),
        ("format_version", 1),
    ],
)
def test_edited_metadata_are_refused(copied: Path, name: str, value: object) -> None:
    path = copied / "metadata.json"
    write_json(path, read_json(path) | {name: value})
    with pytest.raises(BundleError, match=r"metadata\.json: found .*, expected .*altered or damaged"):
        load_bundle(copied)


def test_metadata_without_one_of_their_keys_are_refused(copied: Path) -> None:
    path = copied / "metadata.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "held_out_scores"})
    with pytest.raises(BundleError, match="altered or damaged"):
        verified_metadata(copied)


def test_damaged_metadata_are_refused(copied: Path) -> None:
    path = copied / "metadata.json"
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(DamagedFileError, match=r"metadata\.json is damaged"):
        verified_metadata(copied)


def test_the_id_of_format_version_1_is_a_hash_of_the_files(copied: Path) -> None:
    path = copied / "metadata.json"
    to_format_1(copied)
    assert load_bundle(copied).model_id == read_json(path)["model_id"]
    write_json(path, read_json(path) | {"model_id": "0" * 12})
    with pytest.raises(BundleError, match="found model_id 000000000000, expected"):
        load_bundle(copied)


def test_a_folder_with_a_model_is_not_overwritten(bundle: TrainedBundle, tmp_path: Path) -> None:
    refuse_to_overwrite(tmp_path)
    with pytest.raises(BundleError, match="already holds a model; choose another output folder"):
        save_bundle(bundle.folder, bundle.config, bundle.scorer, TrainingSubjects.of(TRAINING_SCANS), FACTS)


def test_a_model_without_a_healthy_reference_is_not_saved(tmp_path: Path) -> None:
    config = config_of()
    scorer = Scorer(create(config.model_settings(), GRID), config.scoring)
    with pytest.raises(BundleError, match="without a healthy reference cannot be saved"):
        save_bundle(tmp_path / "model", config, scorer, TrainingSubjects.of(TRAINING_SCANS), FACTS)


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
    write_json(copied / "metadata.json", metadata | {"format_version": 99})
    with pytest.raises(BundleError, match=r"found format version 99, expected 2 \(or 1\)"):
        load_bundle(copied)


def test_weights_of_another_network_are_refused(copied: Path) -> None:
    weights = load_file(copied / "weights.safetensors")
    name = next(iter(weights))
    save_file({"unknown": weights.pop(name), **weights}, copied / "weights.safetensors")
    metadata = read_json(copied / "metadata.json")
    own = {"model_id", "metadata_sha256", "format_version", "grid", "hashes"}
    facts = {key: value for key, value in metadata.items() if key not in own}
    write_metadata(copied, tuple(metadata["hashes"]), GRID, facts)
    with pytest.raises(BundleError, match=r"the weights do not fit the model of config\.yaml"):
        load_bundle(copied)


def test_an_ensemble_is_no_trained_model(tmp_path: Path) -> None:
    write_metadata(tmp_path, (), GRID, {"family": "ensemble", "members": {"a": "1", "b": "2"}})
    with pytest.raises(
        BundleError, match=r"is an ensemble, expected a trained model; give its members: .*/members/a"
    ):
        load_bundle(tmp_path)


def test_a_complete_model_is_interrupted_until_the_audit_log_notes_the_end(copied: Path) -> None:
    config = load_bundle(copied).config
    assert interrupted_model(copied, "train", config) is None
    append_entry(copied, {"verb": "train", "event": "started"})
    found = interrupted_model(copied, "train", config)
    assert found is not None
    assert found["model_id"] == read_json(copied / "metadata.json")["model_id"]
    assert interrupted_model(copied, "ensemble", config) is None
    assert interrupted_model(copied, "train", config.model_copy(update={"name": "other"})) is None
    append_entry(copied, {"verb": "train", "event": "finished"})
    assert interrupted_model(copied, "train", config) is None


def test_an_interrupted_model_that_was_altered_is_refused_and_one_without_metadata_is_none(copied: Path) -> None:
    config = load_bundle(copied).config
    append_entry(copied, {"verb": "train", "event": "started"})
    (copied / "weights.safetensors").write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered or damaged"):
        interrupted_model(copied, "train", config)
    (copied / "metadata.json").unlink()
    assert interrupted_model(copied, "train", config) is None


@pytest.mark.slow
def test_a_model_with_maps_of_structure_scores_as_the_saved_one(tmp_path: Path) -> None:
    scoring = {"structure_maps": {"structure": 0.5, "growth_asymmetry": 1.0}, "background_percentile": 90.0}
    config = config_of(scoring=config_of().scoring.model_dump() | scoring)
    saved = save_small_bundle(tmp_path / "model", scoring=config.scoring.model_dump())
    expected, found = (
        trained_scorer(config, tmp_path).score(*healthy_scan(99)),
        saved.scorer.score(*healthy_scan(99)),
    )
    assert found.scores == expected.scores
    assert {"structure", "background"} <= found.scores.keys()
    np.testing.assert_array_equal(found.evidence, expected.evidence)


def test_a_copy_is_the_model_without_its_calibrations(bundle: TrainedBundle, tmp_path: Path) -> None:
    write_json(bundle.folder / "calibrations" / "one.json", {})
    copied = copy_model(bundle.folder, tmp_path / "copy")
    assert {path.relative_to(tmp_path / "copy").as_posix() for path in copied} == {
        "config.yaml", "weights.safetensors", "reference.safetensors", "training_subjects.json", "metadata.json"
    }  # fmt: skip
    assert sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file()) == sorted(copied)
    assert load_bundle(tmp_path / "copy").model_id == bundle.model_id


def test_the_facts_of_a_model_are_those_it_was_saved_with(bundle: TrainedBundle) -> None:
    assert facts_of(bundle.metadata).keys() == FACTS.keys() | {
        "score_mean",
        "score_std",
        "held_out_scores",
        "background",
    }


def test_a_folder_without_a_model_names_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "pretrained" / "default" / "metadata.json", {})
    monkeypatch.setattr(shipped, "PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(BundleError, match="or the name of a model that comes with anomaly: default"):
        load_bundle(tmp_path)
