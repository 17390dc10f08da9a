from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from anomaly.core.errors import InputError
from anomaly.evaluation.run_metrics import EvaluationSettings, compute_metrics
from tests.pipelines.run_folder import SHAPE, make_run, save_image

FEW = EvaluationSettings(n_draws=100)


def test_detection_agrees_with_scikit_learn(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    scores = pd.read_parquet(run / "scores.parquet").iloc[:20]
    expected = roc_auc_score(np.arange(20) >= 12, scores["score"])
    estimate = found.detection["reconstruction (declared)"]["auroc"]
    assert estimate.value == pytest.approx(expected)
    assert estimate.low <= expected <= estimate.high
    assert list(found.detection) == ["reconstruction (declared)", "kl"]
    assert found.detection["kl"]["auroc"].value == pytest.approx(1 - expected)


def test_localisation_is_measured_on_the_maps_in_the_scans_own_space(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW).localisation
    assert found["voxel_average_precision"].value == 1.0
    assert found["dice"].value == pytest.approx(2 * 18 / (18 + 27))
    assert found["oracle_dice_one_threshold"].value == 1.0
    assert found["oracle_dice_per_scan"].value == 1.0
    assert found["false_positive_ml_in_healthy"].value == 0.5
    assert found["dice"].n_subjects == 8


def test_lesions_are_counted_by_size(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    assert found.recall["0 to 1 ml"] == (8, 8)  # 27 voxels of 8 mm³


def test_the_fpr_is_checked_at_the_alpha_of_the_run_first(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    fpr_checks = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW).fpr_checks
    assert [p.alpha for p in fpr_checks] == [0.05, 0.1]
    flagged = pd.read_parquet(run / "scores.parquet")["flagged"].iloc[:12]
    assert fpr_checks[0].n_flagged == int(flagged.sum())
    assert (fpr_checks[0].n_test, fpr_checks[0].n_healthy) == (12, 39)


def test_the_fpr_is_given_by_age_and_sex_where_the_labels_know_them(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    labels = pd.read_csv(tmp_path / "labels.tsv", sep="\t", dtype=str, keep_default_na=False)
    ages = [str(30 + 50 * (n % 2)) for n in range(len(labels))]
    labels.assign(age=ages, sex="F").to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)

    at_5_percent = {item.group: item for item in found.subgroup_fprs if item.alpha == 0.05}
    assert {name: item.n_test for name, item in at_5_percent.items()} == {
        "under 40 years": 6,
        "60 years and older": 6,
        "female": 12,
    }
    assert at_5_percent["female"].n_flagged == found.fpr_checks[0].n_flagged
    assert found.per_scan["age"].tolist()[:2] == [30, 80]


def test_without_ages_and_sexes_no_fpr_by_group_is_given(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert compute_metrics(run, tmp_path / "labels.tsv", settings=FEW).subgroup_fprs == ()


def test_an_alpha_too_small_for_the_reference_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=EvaluationSettings(n_draws=10, alphas=(0.01,)))
    assert [p.alpha for p in found.fpr_checks] == [0.05]


def test_without_a_calibration_no_fpr_is_checked(tmp_path: Path) -> None:
    run = make_run(tmp_path, calibrated=False)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    assert found.fpr_checks == ()
    assert found.drift is None
    assert "dice" not in found.localisation
    assert found.recall == {}
    assert found.localisation["oracle_dice_per_scan"].value == 1.0


def test_a_refused_scan_is_reported_and_not_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    assert found.unscored == ("sub-99_T1w",)
    assert found.per_scan["score"].notna().sum() == 20
    assert found.detection["reconstruction (declared)"]["auroc"].n_subjects == 20


def test_a_mask_on_another_grid_is_recorded_and_the_rest_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    save_image(tmp_path / "masks" / "sub-12_T1w_mask.nii.gz", np.ones((3, 3, 3)))
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    assert [problem.scan_id for problem in found.problems] == ["sub-12_T1w"]
    assert "not on the grid of the scan" in found.problems[0].message
    assert found.localisation["dice"].n_subjects == 7


def test_a_lesion_without_a_mask_is_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    labels = pd.read_csv(tmp_path / "labels.tsv", sep="\t", keep_default_na=False)
    labels.loc[labels["scan_id"] == "sub-13_T1w", "mask"] = ""
    labels.to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    assert [(problem.scan_id, problem.code) for problem in found.problems] == [("sub-13_T1w", "no_mask")]


def test_masks_that_are_all_unusable_are_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        save_image(path, np.zeros(SHAPE))
    with pytest.raises(InputError, match="none of 8 lesion masks can be used"):
        compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)


def test_masks_are_found_in_a_folder_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    labels = pd.read_csv(tmp_path / "labels.tsv", sep="\t")[["scan_id", "label"]]
    labels.to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    assert "voxel_average_precision" not in compute_metrics(run, tmp_path / "labels.tsv", settings=FEW).localisation
    found = compute_metrics(run, tmp_path / "labels.tsv", tmp_path / "masks", settings=FEW)
    assert found.localisation["voxel_average_precision"].n_subjects == 8


def test_healthy_scans_alone_give_the_fpr_only(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_abnormal=0)
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    assert np.isnan(found.detection["reconstruction (declared)"]["auroc"].value)
    assert found.fpr_checks[0].n_test == 12


def test_one_seed_gives_one_result(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first, second = (compute_metrics(run, tmp_path / "labels.tsv", settings=FEW) for _ in range(2))
    assert first.detection["kl"] == second.detection["kl"]
    assert first.localisation == second.localisation


def test_scans_that_look_healthy_are_compared_with_the_reference(tmp_path: Path) -> None:
    found = compute_metrics(make_run(tmp_path), tmp_path / "labels.tsv", settings=FEW)
    assert found.drift is not None
    assert found.drift.level == "none"


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run at .*run\.json"):
        compute_metrics(tmp_path, tmp_path / "labels.tsv")


def test_progress_is_reported(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run = make_run(tmp_path)
    compute_metrics(
        run, tmp_path / "labels.tsv", settings=FEW, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)


def test_a_map_that_is_missing_is_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "sub-12_T1w" / "sub-12_T1w_desc-anomaly_map.nii.gz"
    assert nib.load(path).shape == SHAPE
    path.unlink()
    found = compute_metrics(run, tmp_path / "labels.tsv", settings=FEW)
    assert "no evidence map" in found.problems[0].message
