from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from anomaly.bundle.ensemble import open_bundle
from anomaly.bundle.store import load_bundle
from anomaly.calibration import record as calibrations
from anomaly.core.errors import BundleError, LeakageError
from anomaly.core.files import read_json, write_json
from pipelines.calibrate import calibrate
from pipelines.cli import app
from pipelines.common import Exit
from pipelines.ensemble import ensemble
from pipelines.evaluate import evaluate
from pipelines.report import report
from pipelines.score import ScoreRequest, score
from pipelines.train import train
from tests.bundle.factory import to_format_1
from tests.pipelines.cohorts import healthy, make_cohort, with_lesion, write_config
from tests.pipelines.conftest import Trained


@pytest.fixture(scope="module")
def pca(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("member")
    train(write_config(folder / "pca.yaml", "pca", components=3), trained.training, folder / "pca")
    return folder / "pca"


@pytest.fixture(scope="module")
def atlas(trained: Trained, pca: Path) -> Path:
    return Path(shutil.copytree(trained.model, pca.parent / "atlas"))


@pytest.fixture(scope="module")
def merged(trained: Trained, pca: Path, atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble") / "both"
    ensemble([atlas, pca], folder)
    calibrate(folder, trained.holdout, [0.05, 0.10], "tests")
    return folder


def copied(model: Path, to: Path) -> Path:
    return Path(shutil.copytree(model, to))


@pytest.mark.slow
def test_an_ensemble_does_not_need_the_folders_of_its_members(merged: Path, atlas: Path, pca: Path) -> None:
    bundle = open_bundle(merged)
    metadata = read_json(merged / "metadata.json")

    assert metadata["family"] == "ensemble"
    assert metadata["members"] == {"atlas": load_bundle(atlas).model_id, "pca": load_bundle(pca).model_id}
    assert metadata["data"] == {"n_scans": 15, "n_subjects": 15, "age_min": 40.0, "age_max": 54.0}
    assert bundle.grid.shape == load_bundle(pca).grid.shape
    assert not list((merged / "members").rglob("calibrations"))
    card = (merged / "MODEL_CARD.md").read_text()
    assert "ensemble of `atlas` and `pca`" in card
    assert "Research use only" in card


def test_the_same_members_merged_in_the_same_way_have_the_same_id(
    merged: Path, atlas: Path, pca: Path, tmp_path: Path
) -> None:
    again, other = (
        ensemble([atlas, pca], tmp_path / "again" / "both"),
        ensemble([pca, atlas], tmp_path / "other" / "both"),
    )

    assert again["model_id"] == read_json(merged / "metadata.json")["model_id"] != other["model_id"]


@pytest.mark.slow
def test_scans_go_through_an_ensemble_as_through_a_single_model(merged: Path, tmp_path: Path) -> None:
    cohorts = (
        make_cohort(tmp_path / "new", range(300, 306)),
        make_cohort(tmp_path / "abnormal", range(400, 403), lesion=True),
    )
    score(ScoreRequest(merged, cohorts, tmp_path / "run", alpha=0.05))
    rows = pd.read_parquet(tmp_path / "run" / "scores.parquet").set_index("scan_id")
    labels = pd.DataFrame({"scan_id": rows.index, "label": rows.index.str.contains("lesion").astype(int)})
    labels.to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    found = evaluate(tmp_path / "run", tmp_path / "labels.tsv")
    page = report(tmp_path / "run", jobs=1).read_text()

    assert {"score_atlas", "p_pca", "score_ensemble", "percentile_ensemble"} <= set(rows)
    assert rows["score"].equals(rows["score_ensemble"].rename("score"))
    assert rows.loc[rows.index.str.contains("lesion"), "flagged"].all()
    assert found["auroc"] == 1
    assert "model both (ensemble, T1w)" in page
    run = read_json(tmp_path / "run" / "run.json")
    assert run["score_name"] == "ensemble"
    assert set(run["model"]["members"]) == {"atlas", "pca"}
    assert read_json(tmp_path / "run" / "sub-300_T1w" / "score.json")["provenance"]["inference_seconds"] > 0


def test_the_target_fpr_holds_for_the_merged_score(merged: Path) -> None:
    record = calibrations.for_alpha(merged, 0.05).record

    assert (record.score_name, record.n_healthy) == ("ensemble", 24)
    assert record.voxel_threshold is not None


def test_an_ensemble_gives_bit_identical_evidence_after_loading(merged: Path) -> None:
    voxels, mask = healthy(500)
    first, second = (open_bundle(merged).scorer.score(with_lesion(voxels), mask) for _ in range(2))

    np.testing.assert_array_equal(first.evidence, second.evidence)
    assert first.scores == second.scores


@pytest.mark.slow
def test_a_scan_that_any_member_has_seen_does_not_calibrate(atlas: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "intensity.yaml", "intensity")
    train(config, make_cohort(tmp_path / "others", range(600, 615)), tmp_path / "intensity")
    ensemble([atlas, tmp_path / "intensity"], tmp_path / "both")
    seen = make_cohort(tmp_path / "seen", [*range(200, 224), 3, 604])

    with pytest.raises(LeakageError, match="sub-003_T1w, sub-604_T1w"):
        calibrate(tmp_path / "both", seen, [0.05], "leaky")


@pytest.mark.parametrize("name", ["config.yaml", "members/pca/metadata.json", "members/atlas/weights.safetensors"])
def test_an_altered_ensemble_is_refused(merged: Path, tmp_path: Path, name: str) -> None:
    model = copied(merged, tmp_path / "model")
    (model / name).write_bytes((model / name).read_bytes() + b" ")

    with pytest.raises(BundleError, match=r"found .* expected .* altered or damaged"):
        open_bundle(model)


@pytest.mark.slow
def test_members_must_share_their_preprocessing(trained: Trained, atlas: Path, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(15))
    config, described = yaml.safe_load(trained.config.read_text()), read_json(cohort / "cohort.json")
    for chain in (config["preprocessing"], described["chain"]):
        chain["grid"]["spacing_mm"] = 3.0
        chain["intensity"]["white_value"] = 0.9
    (tmp_path / "fine.yaml").write_text(yaml.safe_dump(config))
    write_json(cohort / "cohort.json", described)
    train(tmp_path / "fine.yaml", cohort, tmp_path / "fine")

    with pytest.raises(BundleError, match=r"atlas and fine differ: .*\.grid\.spacing_mm 2\.0 and 3\.0; .*white"):
        ensemble([atlas, tmp_path / "fine"], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_members_must_be_trained_models_with_different_names(
    merged: Path, atlas: Path, pca: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"is an ensemble, expected a trained model; give its members: .*atlas"):
        ensemble([merged, pca], tmp_path / "both")
    with pytest.raises(BundleError, match=r"found atlas, pca, atlas; expected names that differ"):
        ensemble([atlas, pca, atlas], tmp_path / "both")
    with pytest.raises(BundleError, match="found 1 model, expected at least two"):
        ensemble([atlas], tmp_path / "both")
    with pytest.raises(BundleError, match="already holds a model"):
        ensemble([atlas, pca], merged)


def test_a_model_without_held_out_scores_can_score_but_not_be_a_member(
    atlas: Path, pca: Path, tmp_path: Path
) -> None:
    old = copied(pca, tmp_path / "old")
    to_format_1(old, without=["held_out_scores"])

    assert open_bundle(old).scorer.score(*healthy(500)).scores
    with pytest.raises(BundleError, match=r"'old' has no held-out values of its score 'reconstruction'"):
        ensemble([atlas, old], tmp_path / "both")


def test_the_command_merges_with_the_options_that_it_is_given(atlas: Path, pca: Path, tmp_path: Path) -> None:
    chosen = ["--how", "mean", "--p-values", "conformal", "--weight", "pca=2", "--json"]
    done = CliRunner().invoke(app, ["ensemble", str(atlas), str(pca), "-o", str(tmp_path / "both"), *chosen])

    assert (done.exit_code, json.loads(done.stdout)["members"]) == (Exit.DONE, "atlas, pca")
    merge = yaml.safe_load((tmp_path / "both" / "config.yaml").read_text())["merge"]
    assert merge == {"how": "mean", "p_values": "conformal", "weights": {"pca": 2.0}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--how", "vote"], "Input should be 'fisher', 'bonferroni' or 'mean', found 'vote'"),
        (["--weight", "vae=2"], "unknown member 'vae'; valid: atlas, pca"),
        (["--weight", "pca"], "weights.pca: Input should be a valid number"),
    ],
)
def test_an_invalid_option_is_refused_with_one_line(
    atlas: Path, pca: Path, tmp_path: Path, wrong: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["ensemble", str(atlas), str(pca), "-o", str(tmp_path / "both"), *wrong])

    assert done.exit_code == Exit.BAD_INPUT
    assert message in done.stderr
    assert not (tmp_path / "both").exists()
