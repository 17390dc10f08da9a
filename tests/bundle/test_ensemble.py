from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from anomaly.bundle.ensemble import EnsembleConfig, open_bundle, refuse_unlike, save_ensemble, stored_config
from anomaly.bundle.store import TrainedBundle, write_metadata
from anomaly.bundle.training_subjects import TrainingSubjects
from anomaly.core.errors import BundleError, CommandRefusedError
from anomaly.core.files import read_json
from anomaly.preprocessing.chain import ChainSettings
from anomaly.preprocessing.grid import GridSettings
from anomaly.scoring.ensemble import EnsembleScorer, MergeSettings
from anomaly.scoring.settings import EvidenceSettings
from tests.bundle.factory import save_small_bundle
from tests.models.factories import healthy_scan


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedBundle]:
    folder = tmp_path_factory.mktemp("members")
    return {family: save_small_bundle(folder / family, family) for family in ("atlas", "intensity")}


def ensemble_config(**merge: str) -> EnsembleConfig:
    return EnsembleConfig(
        name="both",
        preprocessing=ChainSettings(),
        scoring=EvidenceSettings(scan_score="ensemble"),
        members=("atlas", "intensity"),
        merge=MergeSettings.parse(merge, "merge"),
    )


@pytest.fixture(scope="module")
def saved(members: Mapping[str, TrainedBundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble") / "both"
    save_ensemble(folder, ensemble_config(), members, {"name": "both"})
    return folder


def test_a_loaded_ensemble_scores_as_its_members_together(saved: Path, members: dict[str, TrainedBundle]) -> None:
    config = ensemble_config()
    expected = EnsembleScorer({name: m.scorer for name, m in members.items()}, config.merge, config.scoring)
    voxels, mask = healthy_scan(99)
    found = open_bundle(saved)

    np.testing.assert_array_equal(found.scorer.score(voxels, mask).evidence, expected.score(voxels, mask).evidence)
    assert found.scorer.score(voxels, mask).scores == expected.score(voxels, mask).scores
    assert found.config == config


def test_an_ensemble_names_its_members_and_their_training_scans(
    saved: Path, members: dict[str, TrainedBundle]
) -> None:
    metadata = read_json(saved / "metadata.json")
    assert metadata["family"] == "ensemble"
    assert metadata["members"] == {name: member.model_id for name, member in members.items()}
    seen = open_bundle(saved).training_subjects()
    assert seen == TrainingSubjects.merged([member.training_subjects() for member in members.values()])
    assert (seen.contains("sub-1"), seen.contains("sub-3")) == (True, False)


def test_another_way_of_merging_has_another_id(
    saved: Path, members: dict[str, TrainedBundle], tmp_path: Path
) -> None:
    model_id = save_ensemble(tmp_path / "mean", ensemble_config(how="mean"), members, {})
    assert model_id != read_json(saved / "metadata.json")["model_id"]


def test_the_config_of_a_trained_model_and_of_an_ensemble_is_read(
    saved: Path, members: dict[str, TrainedBundle]
) -> None:
    assert stored_config(saved) == ensemble_config()
    assert stored_config(members["atlas"].folder) == members["atlas"].config


def test_a_trained_model_is_opened_like_an_ensemble(members: dict[str, TrainedBundle]) -> None:
    assert open_bundle(members["atlas"].folder).model_id == members["atlas"].model_id


def test_an_ensemble_with_an_altered_member_is_refused(members: dict[str, TrainedBundle], tmp_path: Path) -> None:
    save_ensemble(tmp_path / "both", ensemble_config(), members, {})
    weights = tmp_path / "both" / "members" / "atlas" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(BundleError, match="altered or damaged"):
        open_bundle(tmp_path / "both")


def test_members_with_other_preprocessing_are_refused_with_the_key(
    members: dict[str, TrainedBundle], tmp_path: Path
) -> None:
    chain = ChainSettings(grid=GridSettings(spacing_mm=3.0))
    other = save_small_bundle(tmp_path / "coarse", preprocessing=chain.model_dump(mode="json"))
    with pytest.raises(
        BundleError, match=r"atlas and coarse differ: preprocessing\.grid\.spacing_mm 2\.0 and 3\.0;"
    ):
        refuse_unlike({"atlas": members["atlas"], "coarse": other})


def test_an_ensemble_does_not_overwrite_a_model(saved: Path, members: dict[str, TrainedBundle]) -> None:
    with pytest.raises(BundleError, match="already holds a model"):
        save_ensemble(saved, ensemble_config(), members, {})


COMMAND = "extract -i {input} -m {mask}"


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({"command": COMMAND}, True),
        ({"command": COMMAND, "method": "command"}, True),
        ({"command": COMMAND, "method": "registration"}, False),
        ({}, False),
    ],
)
def test_a_model_that_would_run_a_program_needs_consent(
    tmp_path: Path, settings: dict[str, str], runs: bool
) -> None:
    folder = tmp_path / "model"
    save_small_bundle(folder, preprocessing={"brain_mask": settings})
    if runs:
        with pytest.raises(CommandRefusedError, match=r"would run a program .*'extract -i \{input\} -m \{mask\}'"):
            open_bundle(folder)
    assert open_bundle(folder, allow_command=runs).config.preprocessing.brain_mask.command == settings.get(
        "command", ""
    )


def test_a_member_that_would_run_a_program_needs_consent(members: dict[str, TrainedBundle], tmp_path: Path) -> None:
    other = save_small_bundle(tmp_path / "other", "intensity", preprocessing={"brain_mask": {"command": COMMAND}})
    folder = tmp_path / "both"
    both = {"atlas": members["atlas"], "intensity": other}
    with pytest.raises(BundleError, match=r"preprocessing\.brain_mask\.command"):
        save_ensemble(folder, ensemble_config(), both, {})
    save_ensemble(folder, ensemble_config(), members, {})
    shutil.rmtree(folder / "members" / "intensity")
    shutil.copytree(other.folder, folder / "members" / "intensity")
    metadata = read_json(folder / "metadata.json")
    facts = {key: metadata[key] for key in ("family", "members")}
    write_metadata(folder, tuple(metadata["hashes"]), other.grid, facts)
    with pytest.raises(CommandRefusedError, match=r"members/intensity would run a program"):
        open_bundle(folder)
    assert open_bundle(folder, allow_command=True).metadata["family"] == "ensemble"
