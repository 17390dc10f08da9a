from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from anomaly.bundle.store import copy_model, load_bundle
from anomaly.calibration import record as calibrations
from anomaly.cohort.table import read_records, write_manifest
from anomaly.core.audit_log import read_audit_log
from anomaly.core.errors import AlphaTooSmallError, BundleError, CohortError, ConfigError, LeakageError
from anomaly.inference.model import load_model
from pipelines.audit import verify
from pipelines.calibrate import calibrate
from tests.pipelines.cohorts import add_refused, add_warning, make_cohort
from tests.pipelines.conftest import Trained


def test_each_alpha_has_a_record_of_its_own(trained: Trained) -> None:
    strict, loose = (calibrations.for_alpha(trained.model, alpha).record for alpha in (0.05, 0.10))

    assert strict.threshold > loose.threshold
    assert strict.n_healthy == loose.n_healthy == 24
    assert strict.reason == "tests"
    assert strict.scope.modality == "T1w"
    assert strict.interval_low < strict.expected_rate < strict.interval_high
    assert strict.voxel_threshold is not None


def test_the_first_alpha_of_a_call_is_what_score_uses_by_default(trained: Trained) -> None:
    newest = calibrations.latest(trained.model)

    assert newest is not None
    assert newest.record.alpha == 0.05


def test_every_score_has_reference_values(trained: Trained) -> None:
    calibration = calibrations.for_alpha(trained.model, 0.05)

    assert {"reconstruction", "combined"} <= set(calibration.score_names)
    assert len(calibration.reference_scores()) == 24


def test_too_few_healthy_scans_for_an_alpha_are_refused_before_anything_is_scored(trained: Trained) -> None:
    before = calibrations.records(trained.model)

    with pytest.raises(AlphaTooSmallError, match=r"1/\(n \+ 1\) = 0\.0400"):
        calibrate(trained.model, trained.holdout, [0.05, 0.01], "too strict")
    assert calibrations.records(trained.model) == before


@pytest.mark.slow
def test_subjects_seen_in_training_are_refused(trained: Trained, tmp_path: Path) -> None:
    seen = make_cohort(tmp_path / "seen", [*range(200, 224), 3])

    with pytest.raises(LeakageError, match="sub-003"):
        calibrate(trained.model, seen, [0.05], "leaky")


def test_a_scan_seen_in_training_under_another_name_is_refused(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "renamed", [*range(200, 224), 3])
    renamed = [replace(r, subject="sub-999") if r.subject == "sub-003" else r for r in read_records(cohort)]
    write_manifest(cohort, renamed)

    with pytest.raises(LeakageError, match="by content"):
        calibrate(trained.model, cohort, [0.05], "leaky")


def test_a_reason_is_required(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        calibrate(trained.model, trained.holdout, [0.05], "  ")


@pytest.mark.parametrize("alpha", [5, 0, -0.05, float("nan")])
def test_an_alpha_outside_0_to_1_is_refused_before_anything_is_scored(trained: Trained, alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"found --alpha .*expected a share between 0 and 1"):
        calibrate(trained.model, trained.holdout, [0.05, alpha], "in per cent")


@pytest.mark.slow
def test_refused_scans_are_named_with_reason_and_remedy(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(200, 224))
    add_refused(cohort, read_records(cohort))
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))

    summary = calibrate(model, cohort, [0.05], "with a bad scan")

    assert (summary["healthy_scans"], summary["refused"]) == (24, 1)
    assert summary["not_scored"] == [
        {"scan_id": "sub-bad_T1w", "status": "refused", "reason": "found 4 axes; expected 3",
         "remedy": "give single volumes"}
    ]  # fmt: skip


@pytest.mark.slow
def test_healthy_scans_with_contrast_agent_are_no_reference_for_those_without(
    trained: Trained, tmp_path: Path
) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(200, 224))
    records = read_records(cohort)
    write_manifest(cohort, [replace(records[0], modality="T1ce"), *records[1:]])
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))

    summary = calibrate(model, cohort, [0.05], "with one T1ce scan")

    assert (summary["healthy_scans"], summary["refused"]) == (23, 1)
    assert summary["not_scored"][0]["reason"] == "found a T1ce scan; expected a T1w scan"


@pytest.mark.slow
def test_warnings_of_the_healthy_scans_are_in_the_summary_and_the_record(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(200, 224))
    add_warning(cohort, "found 27 different values; expected at least 40")
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))

    summary = calibrate(model, cohort, [0.05], "with warnings")

    assert [scan["warnings"] for scan in summary["warnings"]] == [
        ["found 27 different values; expected at least 40"]
    ] * 24
    assert summary["calibrations"][0]["notes"] == ["24 of 24 scans have warnings of the quality checks"]


def test_a_cohort_without_a_scan_to_calibrate_with_says_why(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [200])
    add_refused(cohort, [])

    with pytest.raises(CohortError, match=r"found no accepted healthy T1w scan.*sub-bad_T1w: found 4 axes"):
        calibrate(trained.model, cohort, [0.05], "nothing there")


def test_a_scan_that_fails_is_named_and_the_others_calibrate(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(200, 224))
    (cohort / "volumes" / "sub-211_T1w.nii").write_bytes(b"broken")
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))

    summary = calibrate(model, cohort, [0.05], "with a damaged file")

    assert (summary["healthy_scans"], summary["refused"]) == (23, 1)
    assert [(scan["scan_id"], scan["status"]) for scan in summary["not_scored"]] == [("sub-211_T1w", "failed")]


@pytest.mark.slow
def test_an_interrupted_calibration_does_not_score_a_scan_twice(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(200, 224))
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))

    def stop_after_ten(done: int, total: int, message: str) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, cohort, [0.05], "interrupted", progress=stop_after_ten)
    scored = {path: path.stat().st_mtime_ns for path in (model / "calibration_scans").rglob("score.json")}
    first = calibrate(model, cohort, [0.05], "continued")
    whole = calibrate(Path(shutil.copytree(trained.model, tmp_path / "other")), cohort, [0.05], "at once")

    assert len(scored) >= 24 + 8  # those of the fixture, and those before the interrupt
    assert all(path.stat().st_mtime_ns == when for path, when in scored.items())
    assert first["calibrations"][0]["threshold"] == whole["calibrations"][0]["threshold"]


def test_healthy_scans_none_of_which_can_be_scored_are_an_error(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(200, 224))
    for volume in (cohort / "volumes").iterdir():
        volume.write_bytes(b"broken")
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))
    with pytest.raises(CohortError, match="none of 24 healthy scans could be scored; sub-200_T1w: CohortError"):
        calibrate(model, cohort, [0.05], "damaged files")


def test_a_shipped_model_is_not_calibrated_itself(shipped_model: Path, trained: Trained, tmp_path: Path) -> None:
    for model in (Path("default"), shipped_model):
        with pytest.raises(BundleError, match="comes with anomaly and is never changed"):
            calibrate(model, trained.holdout, [0.05], "our scanner")
    with pytest.raises(BundleError, match="comes with anomaly and is never changed"):
        calibrate(trained.model, trained.holdout, [0.05], "our scanner", output=shipped_model)


@pytest.mark.slow
def test_a_copy_of_a_shipped_model_has_the_own_calibrations_alone(
    shipped_model: Path, trained: Trained, tmp_path: Path
) -> None:
    copy = tmp_path / "ours"
    made = calibrate(Path("default"), trained.holdout, [0.05], "our scanner", output=copy)
    assert made["model"] == str(copy)
    assert made["model_id"] == load_bundle(shipped_model).model_id
    assert [record.reason for record in calibrations.records(copy)] == ["our scanner"]
    assert load_model(copy).notices == ()
    assert verify(copy)["verified"]


@pytest.mark.slow
def test_a_copy_is_made_once_and_calibrated_again(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "ours"
    for reason in ("first", "second"):
        calibrate(trained.model, trained.holdout, [0.05], reason, output=copy)
    assert [record.reason for record in calibrations.records(copy)] == ["first", "second"]
    assert [entry["verb"] for entry in read_audit_log(copy).entries].count("copy") == 1


@pytest.mark.slow
def test_an_interrupted_copy_is_completed(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "ours"
    copy_model(trained.model, copy)
    (copy / "metadata.json").unlink()
    calibrate(trained.model, trained.holdout, [0.05], "again", output=copy)
    assert verify(copy)["verified"]


def test_a_copy_does_not_replace_another_model(shipped_model: Path, trained: Trained, tmp_path: Path) -> None:
    copy_model(trained.model, tmp_path / "other")
    with pytest.raises(BundleError, match=r"other holds the model .*, expected none or a copy of .*choose another"):
        calibrate(Path("default"), trained.holdout, [0.05], "our scanner", output=tmp_path / "other")


@pytest.mark.slow
def test_the_output_may_be_the_model_itself(trained: Trained, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))
    calibrate(model, trained.holdout, [0.05], "the same", output=model)
    assert calibrations.records(model)[-1].reason == "the same"
