from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from anomaly.bundle.ensemble import open_bundle
from anomaly.bundle.store import load_bundle
from anomaly.calibration import record as calibrations
from anomaly.cohort.table import read_records, write_manifest
from anomaly.core.errors import BundleError, CohortError, ConfigError, LeakageError
from anomaly.core.files import read_json, write_json
from anomaly.export.nifti import write_nifti
from pipelines.adapt import MIN_SUBJECTS, adapt
from pipelines.audit import verify
from pipelines.calibrate import calibrate
from pipelines.cli import app
from pipelines.common import Exit
from pipelines.ensemble import ensemble
from pipelines.info import describe
from pipelines.train import train
from tests.pipelines.cohorts import GRID, healthy, make_brighter_cohort, make_cohort, write_config
from tests.pipelines.conftest import Trained

LOCAL = range(300, 308)
REASON = "scanner B"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_brighter_cohort(tmp_path_factory.mktemp("local") / "cohort", LOCAL)


@pytest.fixture(scope="module")
def adapted(trained: Trained, local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "model"
    adapt(trained.model, local, folder, REASON)
    return folder


def test_an_adapted_model_says_who_made_it_from_what_with_which_scans_and_why(
    trained: Trained, adapted: Path
) -> None:
    found, parent = read_json(adapted / "metadata.json"), read_json(trained.model / "metadata.json")
    assert found["adaptation"]["parent"] == parent["model_id"] != found["model_id"]
    assert (found["adaptation"]["n_scans"], found["adaptation"]["n_subjects"]) == (8, 8)
    assert (found["adaptation"]["age_min"], found["adaptation"]["age_max"]) == (340.0, 347.0)
    assert found["adaptation"]["reason"] == REASON
    assert found["created_at"] >= parent["created_at"]
    assert found["data"] == parent["data"]
    assert f"from {parent['model_id']} with 8 healthy scans: {REASON}" == describe(str(adapted))["adapted"]
    assert describe(str(trained.model))["adapted"] is None
    card = (adapted / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"Made from the model `{parent['model_id']}` with 8 healthy scans of 8 subjects" in card
    assert "Adapted" not in (trained.model / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_weights_stay_and_the_reference_changes(trained: Trained, adapted: Path) -> None:
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (trained.model, adapted)]
    before, after = (load_bundle(folder).scorer for folder in (trained.model, adapted))
    assert weights[0] == weights[1]
    assert before.reference is not None
    assert after.reference is not None
    assert not np.array_equal(before.reference.mean["residual"], after.reference.mean["residual"])
    assert len(after.reference.held_out_scores["reconstruction"]) == 8


def test_a_new_healthy_scan_of_the_scanner_scores_lower_after_adaptation(
    trained: Trained, adapted: Path, tmp_path: Path
) -> None:
    cohort = make_brighter_cohort(tmp_path / "new", range(400, 403))
    record = read_records(cohort)[0]
    voxels = np.asarray(_read(cohort / record.volume), dtype=np.float32)
    scores = [
        load_bundle(folder).scorer.score(voxels, healthy(400)[1]).scores["reconstruction"]
        for folder in (trained.model, adapted)
    ]
    assert scores[1] < 0.9 * scores[0]


def test_an_adapted_model_has_no_calibration_and_its_audit_log_verifies(adapted: Path) -> None:
    assert calibrations.latest(adapted) is None
    assert verify(adapted)["verified"]
    assert not (adapted / "adaptation").exists()


@pytest.mark.slow
def test_scans_that_a_model_was_adapted_to_cannot_calibrate_it(adapted: Path, local: Path, tmp_path: Path) -> None:
    with pytest.raises(LeakageError, match="8 of 8 scans were seen in training or adaptation"):
        calibrate(adapted, local, [0.2], "leaky")

    others = make_cohort(tmp_path / "mixed", [*range(500, 510), LOCAL[0]])
    with pytest.raises(LeakageError, match=f"1 of 11 .*sub-{LOCAL[0]}"):
        calibrate(adapted, others, [0.2], "one of them")


def test_training_scans_cannot_calibrate_an_adapted_model_either(adapted: Path, trained: Trained) -> None:
    with pytest.raises(LeakageError, match="15 of 15"):
        calibrate(adapted, trained.training, [0.2], "leaky")


@pytest.mark.slow
def test_other_local_scans_calibrate_it(adapted: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(adapted, tmp_path / "model"))
    summary = calibrate(model, make_brighter_cohort(tmp_path / "others", range(400, 410)), [0.1], "scanner B")
    assert summary["healthy_scans"] == 10
    assert verify(model)["verified"]


def test_too_few_subjects_are_refused_before_anything_is_written(trained: Trained, tmp_path: Path) -> None:
    few = make_cohort(tmp_path / "few", range(300, 300 + MIN_SUBJECTS - 1))
    with pytest.raises(CohortError, match=rf"found {MIN_SUBJECTS - 1} healthy .*expected at least {MIN_SUBJECTS}"):
        adapt(trained.model, few, tmp_path / "model", REASON)
    assert not (tmp_path / "model" / "metadata.json").exists()


def test_scans_of_the_training_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(LeakageError, match="15 of 15 scans were seen"):
        adapt(trained.model, trained.training, tmp_path / "model", REASON)


def test_a_reason_is_required(trained: Trained, local: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        adapt(trained.model, local, tmp_path / "model", " ")


def test_scans_of_patients_are_not_used(trained: Trained, local: Path, tmp_path: Path) -> None:
    cohort = Path(shutil.copytree(local, tmp_path / "patients"))
    records = read_records(cohort)
    write_manifest(cohort, [*records[:6], *(replace(record, group="stroke") for record in records[6:])])
    assert adapt(trained.model, cohort, tmp_path / "model", REASON)["local_scans"] == 6

    write_manifest(cohort, [replace(record, group="stroke") for record in records])
    with pytest.raises(CohortError, match="no accepted healthy T1w scan"):
        adapt(trained.model, cohort, tmp_path / "none", REASON)


def test_only_the_split_train_of_a_cohort_with_splits_is_used(
    trained: Trained, local: Path, tmp_path: Path
) -> None:
    cohort = Path(shutil.copytree(local, tmp_path / "split"))
    records = read_records(cohort)
    splits = ["train"] * 5 + ["calibration"] * 3
    write_manifest(cohort, [replace(record, split=split) for record, split in zip(records, splits, strict=True)])
    assert adapt(trained.model, cohort, tmp_path / "model", REASON)["local_scans"] == 5


def test_a_scan_with_contrast_agent_and_one_unlike_the_training_scans_are_left_out_and_named(
    trained: Trained, local: Path, tmp_path: Path
) -> None:
    cohort = Path(shutil.copytree(local, tmp_path / "mixed"))
    records = read_records(cohort)
    voxels, mask = healthy(0)
    write_nifti(cohort / records[1].volume, np.where(mask, 1.4 - voxels, 0).astype(np.float32), GRID)
    write_manifest(cohort, [replace(records[0], modality="T1ce"), *records[1:]])

    summary = adapt(trained.model, cohort, tmp_path / "model", REASON)
    assert (summary["local_scans"], summary["refused"]) == (6, 2)
    assert "T1ce" in summary["not_scored"][0]["reason"]
    assert "median block correlation" in summary["not_scored"][1]["reason"]


def test_a_cohort_of_another_chain_is_refused(trained: Trained, local: Path, tmp_path: Path) -> None:
    cohort = Path(shutil.copytree(local, tmp_path / "chain"))
    known = read_json(cohort / "cohort.json")
    known["chain"]["grid"]["spacing_mm"] = 4.0
    write_json(cohort / "cohort.json", known)
    with pytest.raises(ConfigError, match="another chain"):
        adapt(trained.model, cohort, tmp_path / "model", REASON)


def test_an_adapted_model_is_not_adapted_again(adapted: Path, tmp_path: Path) -> None:
    other = make_cohort(tmp_path / "third", range(600, 608))
    with pytest.raises(BundleError, match="itself adapted"):
        adapt(adapted, other, tmp_path / "model", REASON)


def test_a_folder_that_holds_a_model_is_left_alone(trained: Trained, adapted: Path, local: Path) -> None:
    before = (adapted / "metadata.json").read_bytes()
    with pytest.raises(BundleError, match="already holds a model"):
        adapt(trained.model, local, adapted, REASON)
    assert (adapted / "metadata.json").read_bytes() == before


def test_a_call_that_was_interrupted_after_the_last_file_is_finished(
    trained: Trained, adapted: Path, local: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(adapted, tmp_path / "model"))
    started, _finished = (model / "audit.jsonl").read_text().splitlines(keepends=True)
    (model / "audit.jsonl").write_text(started)

    with pytest.raises(BundleError, match="already holds a model"):
        adapt(trained.model, local, model, "another reason")
    summary = adapt(trained.model, local, model, REASON)
    assert summary["model_id"] == read_json(adapted / "metadata.json")["model_id"]
    assert verify(model)["verified"]


def test_a_call_that_was_interrupted_before_the_metadata_is_repeated(
    trained: Trained, adapted: Path, local: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(adapted, tmp_path / "model"))
    started, _finished = (model / "audit.jsonl").read_text().splitlines(keepends=True)
    (model / "audit.jsonl").write_text(started)
    (model / "metadata.json").unlink()
    adapt(trained.model, local, model, REASON)
    assert load_bundle(model).metadata["adaptation"]["n_scans"] == 8
    assert verify(model)["verified"]


@pytest.mark.slow
def test_the_members_of_an_ensemble_are_adapted(trained: Trained, local: Path, tmp_path: Path) -> None:
    train(write_config(tmp_path / "pca.yaml", "pca", components=3), trained.training, tmp_path / "pca")
    atlas = Path(shutil.copytree(trained.model, tmp_path / "atlas"))
    ensemble([atlas, tmp_path / "pca"], tmp_path / "both")

    summary = adapt(tmp_path / "both", local, tmp_path / "here", REASON)

    bundle, before = open_bundle(tmp_path / "here"), open_bundle(tmp_path / "both")
    assert summary["model_id"] == bundle.model_id != before.model_id
    assert bundle.config == before.config
    for name in ("atlas", "pca"):
        member = load_bundle(tmp_path / "here" / "members" / name)
        assert member.metadata["adaptation"]["parent"] == before.metadata["members"][name]
        assert len(member.scorer.reference.held_out_scores["reconstruction"]) == 8
    assert not (tmp_path / "here" / "adaptation").exists()
    assert verify(tmp_path / "here")["verified"]
    assert "Adapted to another scanner" in (tmp_path / "here" / "MODEL_CARD.md").read_text(encoding="utf-8")
    with pytest.raises(LeakageError):
        calibrate(tmp_path / "here", local, [0.2], "leaky")


def test_the_command_prints_the_summary(trained: Trained, local: Path, tmp_path: Path) -> None:
    arguments = ["adapt", str(trained.model), "--cohort", str(local), "-o", str(tmp_path / "model"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--reason", REASON, "-q"])
    assert result.exit_code == Exit.DONE, result.output
    assert json.loads(result.stdout)["local_scans"] == 8
    again = CliRunner().invoke(app, [*arguments, "--reason", REASON, "-q"])
    assert again.exit_code == Exit.BAD_INPUT


def _read(path: Path) -> np.ndarray:
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj)


def test_a_shipped_model_is_adapted_by_its_name(shipped_model: Path, local: Path, tmp_path: Path) -> None:
    summary = adapt(Path("default"), local, tmp_path / "here", REASON)
    found, parent = read_json(tmp_path / "here" / "metadata.json"), read_json(shipped_model / "metadata.json")
    assert summary["model_id"] == found["model_id"]
    assert found["adaptation"]["parent"] == parent["model_id"]
    assert found["shipped"]["licence"] == parent["shipped"]["licence"]
    assert calibrations.latest(tmp_path / "here") is None
