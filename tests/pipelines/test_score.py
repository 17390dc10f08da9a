from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from anomaly.calibration import record as calibrations
from anomaly.cohort.table import read_records, write_manifest
from anomaly.core.errors import (
    BundleError,
    CohortError,
    CommandRefusedError,
    ConfigError,
    TrainingError,
    UncalibratedError,
)
from anomaly.core.files import read_json, write_json
from anomaly.core.results import ScanStatus
from anomaly.inference.scan_warnings import SHIPPED_CALIBRATION
from pipelines.calibrate import calibrate
from pipelines.report import report
from pipelines.score import ScoreRequest, score
from pipelines.train import train
from tests.pipelines.cohorts import OBLIQUE, SCAN, add_refused, add_warning, make_cohort, write_config
from tests.pipelines.conftest import Trained


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight healthy scans and one that ingest refused."""
    folder = make_cohort(tmp_path_factory.mktemp("new") / "cohort", range(300, 308))
    add_refused(folder, read_records(folder))
    return folder


@pytest.fixture(scope="module")
def abnormal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("abnormal") / "cohort", range(400, 403), lesion=True)


@pytest.fixture(scope="module")
def run(trained: Trained, cohort: Path, abnormal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    score(ScoreRequest(trained.model, (cohort, abnormal), output, alpha=0.05))
    return output


def table(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "scores.parquet").set_index("scan_id")


def contents(run: Path) -> dict[str, bytes]:
    """Return every result of a run, without the times at which they were made."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.suffix in {".gz", ".npz", ".tsv", ".parquet"}:
            found[str(path.relative_to(run))] = path.read_bytes()
    return found


def test_every_scan_has_a_row_and_lesions_are_flagged(run: Path) -> None:
    rows = table(run)

    assert len(rows) == 12
    assert rows.loc[[f"sub-{n}_acq-lesion_T1w" for n in (400, 401, 402)], "flagged"].all()
    assert rows["p_value"].iloc[0] == pytest.approx(1 / 25)
    assert {"score_reconstruction", "p_reconstruction", "percentile_reconstruction", "score_combined"} <= set(rows)


def test_a_refused_scan_gets_no_score_but_a_row_with_reason_and_remedy(run: Path) -> None:
    not_scored = pd.read_csv(run / "refused_failed.tsv", sep="\t").set_index("scan_id")

    assert not_scored.loc["sub-bad_T1w", "reason"] == "found 4 axes; expected 3"
    assert not_scored.loc["sub-bad_T1w", "remedy"] == "give single volumes"
    assert np.isnan(table(run).loc["sub-bad_T1w", "score"])


def test_the_map_lies_on_the_scans_own_oblique_grid_and_peaks_in_the_lesion(run: Path) -> None:
    image = nib.load(run / "sub-400_acq-lesion_T1w" / "sub-400_acq-lesion_T1w_desc-anomaly_map.nii.gz")
    evidence = np.asarray(image.dataobj)
    peak_mm = OBLIQUE @ np.append(np.unravel_index(evidence.argmax(), evidence.shape), 1.0)

    assert image.shape == SCAN.shape
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-4)
    assert np.all(np.abs(peak_mm[:3] - [60, 68, 52]) < 20)


def test_a_flagged_region_is_listed_in_both_spaces_with_its_polarity(run: Path) -> None:
    region = read_json(run / "sub-400_acq-lesion_T1w" / "score.json")["regions"][0]

    assert region["polarity"] == "dark"
    world = OBLIQUE @ [*region["voxel"], 1]
    np.testing.assert_allclose(region["mni_mm"], world[:3], atol=0.1)


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_result(
    run: Path, trained: Trained, cohort: Path, abnormal: Path, tmp_path: Path
) -> None:
    def stop_after_three(done: int, total: int, message: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    request = ScoreRequest(trained.model, (cohort, abnormal), tmp_path, alpha=0.05)
    with pytest.raises(KeyboardInterrupt):
        score(request, stop_after_three)
    assert not (tmp_path / "scores.parquet").exists()
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/score.json")}
    assert 1 <= len(finished) <= 4

    score(request)

    assert contents(tmp_path) == contents(run)
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())


def test_a_scan_that_breaks_the_software_fails_alone(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(310, 314))
    (cohort / "volumes" / "sub-311_T1w.nii").write_bytes(b"broken")

    summary = score(ScoreRequest(trained.model, (cohort,), tmp_path / "run"))

    assert (summary["scored"], summary["failed"]) == (3, 1)
    assert "sub-311_T1w" in (tmp_path / "run" / "refused_failed.tsv").read_text()


def test_results_of_another_calibration_in_the_folder_are_refused(
    run: Path, trained: Trained, cohort: Path
) -> None:
    with pytest.raises(BundleError, match=r"holds results of model .*choose another folder, or --overwrite"):
        score(ScoreRequest(trained.model, (cohort,), run, alpha=0.10))


def test_a_calibration_for_another_rate_than_asked_for_is_refused(
    trained: Trained, abnormal: Path, tmp_path: Path
) -> None:
    found = calibrations.for_alpha(trained.model, 0.10).record.calibration_id
    request = ScoreRequest(trained.model, (abnormal,), tmp_path / "run", alpha=0.05, calibration=found)

    with pytest.raises(ConfigError, match=r"target false-positive rate of 0\.1, but alpha 0\.05"):
        score(request)
    assert score(replace(request, alpha=0.1))["alpha"] == 0.1


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "unknown device 'gpu'"), ("cuda:99", r"found (no|\d+) CUDA device")]
)
def test_a_device_that_does_not_exist_is_refused(
    device: str, message: str, trained: Trained, abnormal: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=message):
        score(ScoreRequest(trained.model, (abnormal,), tmp_path / "run", device=device))


def test_without_a_calibration_nothing_is_flagged(trained: Trained, abnormal: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))
    shutil.rmtree(model / "calibrations")
    summary = score(ScoreRequest(model, (abnormal,), tmp_path / "run"))

    assert summary["calibration_id"] is None
    assert table(tmp_path / "run")["flagged"].isna().all()
    assert table(tmp_path / "run")["score"].notna().all()
    with pytest.raises(UncalibratedError, match="run `anomaly calibrate`"):
        score(ScoreRequest(model, (abnormal,), tmp_path / "other", alpha=0.05))


def test_a_scan_unlike_the_training_scans_is_refused(trained: Trained, tmp_path: Path) -> None:
    from anomaly.export.nifti import write_nifti
    from tests.pipelines.cohorts import GRID, healthy

    cohort = make_cohort(tmp_path / "cohort", [320])
    voxels, mask = healthy(320)
    write_nifti(cohort / "volumes" / "sub-320_T1w.nii", np.where(mask, 1.4 - voxels, 0), GRID)
    summary = score(ScoreRequest(trained.model, (cohort,), tmp_path / "run"))

    assert summary["refused"] == 1
    assert summary["not_scored"][0]["reason"].startswith("found a median block correlation of -")


@pytest.mark.slow
def test_a_scan_as_from_another_scanner_is_scored_with_a_warning(trained: Trained, tmp_path: Path) -> None:
    train(trained.config, make_cohort(tmp_path / "training", range(500, 530)), tmp_path / "model")
    new = make_cohort(tmp_path / "new", [600, 601])
    volume = new / "volumes" / "sub-601_T1w.nii"
    image = nib.load(volume)
    noise = np.random.default_rng(0).normal(0, 0.05, image.shape) * (image.get_fdata() > 0)
    nib.save(nib.Nifti1Image((image.get_fdata() + noise).astype(np.float32), image.affine), volume)

    summary = score(ScoreRequest(tmp_path / "model", (new,), tmp_path / "run"))

    rows = table(tmp_path / "run")
    assert (summary["scored"], summary["scored_with_warnings"]) == (2, 1)
    assert rows.loc["sub-600_T1w", "warnings"] == ""
    assert "another scanner or protocol (p = " in rows.loc["sub-601_T1w", "warnings"]
    assert read_json(tmp_path / "run" / "sub-601_T1w" / "score.json")["numbers"]["acquisition_p"] < 1e-4


def test_run_json_names_the_model_and_the_calibration(run: Path, trained: Trained) -> None:
    facts = json.loads((run / "run.json").read_text())

    assert facts["model"]["model_id"] == read_json(trained.model / "metadata.json")["model_id"]
    assert facts["calibration"]["alpha"] == 0.05
    assert len(facts["reference_scores"]["reconstruction"]) == 24
    assert facts["display"]["evidence_max"] > facts["display"]["voxel_threshold"]


def test_the_warnings_of_ingest_reach_every_output(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [330, 331])
    add_warning(cohort, "found 27 different values; expected at least 40")
    records = read_records(cohort)
    refused = records[1].with_status(ScanStatus.REFUSED, "brain_volume", "found 9 ml", "check it")
    write_manifest(cohort, [records[0], refused])

    summary = score(ScoreRequest(trained.model, (cohort,), tmp_path / "run"))

    rows = pd.read_csv(tmp_path / "run" / "scores.tsv", sep="\t").set_index("scan_id")
    assert (summary["scored"], summary["scored_with_warnings"], len(summary["warnings"])) == (1, 1, 2)
    for row in rows["warnings"]:
        assert row.startswith("found 27 different values")
    assert read_json(tmp_path / "run" / "sub-330_T1w" / "score.json")["warnings"] == rows["warnings"].tolist()[:1]


def test_a_result_without_todays_warnings_is_made_again(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [330])
    score(ScoreRequest(trained.model, (cohort,), tmp_path / "run"))
    add_warning(cohort, "found 27 different values; expected at least 40")
    score(ScoreRequest(trained.model, (cohort,), tmp_path / "run"))
    assert table(tmp_path / "run").loc["sub-330_T1w", "warnings"].startswith("found 27")


@pytest.mark.slow
def test_a_scan_is_compared_with_healthy_subjects_of_its_age(tmp_path: Path) -> None:
    config = write_config(tmp_path / "atlas.yaml")
    settings = yaml.safe_load(config.read_text())
    settings["scoring"]["standardise"] = "normative"
    config.write_text(yaml.safe_dump(settings))
    train(config, make_cohort(tmp_path / "training", range(30)), tmp_path / "model")
    cohort = make_cohort(tmp_path / "new", range(300, 303))
    ages = (50.7, 85.2, None)
    write_manifest(cohort, [replace(r, age=a, sex="M") for r, a in zip(read_records(cohort), ages, strict=True)])
    score(ScoreRequest(tmp_path / "model", (cohort,), tmp_path / "run"))
    report(tmp_path / "run", jobs=1)

    rows = table(tmp_path / "run").sort_index()
    pages = [(tmp_path / "run" / scan / "report.html").read_text(encoding="utf-8") for scan in rows.index]
    assert rows["age"].tolist()[:2] == [50, 85]
    assert "Compared with healthy subjects of 50 years, male." in pages[0]
    assert "the subject is 85 years old" not in rows["warnings"].iloc[0]
    assert (
        "the subject is 85 years old; the reference holds healthy subjects of 40 to 6" in rows["warnings"].iloc[1]
    )
    assert "The age of the subject is unknown" in pages[2]


@pytest.mark.slow
def test_the_rows_of_earlier_sources_stay_in_the_run(trained: Trained, tmp_path: Path) -> None:
    for numbers in ([340, 341], [342], [341, 343]):
        cohort = make_cohort(tmp_path / f"cohort{numbers[0]}", numbers)
        if numbers == [342]:
            add_refused(cohort, read_records(cohort))
        summary = score(ScoreRequest(trained.model, (cohort,), tmp_path / "run"))

    names = [*(f"sub-{n}_T1w" for n in (340, 341, 342, 343)), "sub-bad_T1w"]
    assert (summary["scored"], summary["scans_in_run"]) == (2, 5)
    assert sorted(table(tmp_path / "run").index) == names
    assert pd.read_csv(tmp_path / "run" / "refused_failed.tsv", sep="\t")["scan_id"].tolist() == ["sub-bad_T1w"]


@pytest.mark.slow
def test_two_scans_of_one_name_are_both_scored(trained: Trained, tmp_path: Path) -> None:
    first, second = make_cohort(tmp_path / "a", [350]), make_cohort(tmp_path / "b", [351])
    write_manifest(second, [replace(read_records(second)[0], scan_id="sub-350_T1w")])
    together = ScoreRequest(trained.model, (first, second), tmp_path / "run")
    score(together)
    rows = table(tmp_path / "run")
    assert rows["score"].nunique() == 2
    assert rows["warnings"].str.contains("another scan of this run is named sub-350_T1w").sum() == 1

    score(replace(together, sources=(second,)))
    score(replace(together, sources=(first,)))
    pd.testing.assert_frame_equal(table(tmp_path / "run"), rows)


def test_overwriting_with_another_calibration_must_name_all_sources(trained: Trained, tmp_path: Path) -> None:
    both, one = make_cohort(tmp_path / "both", [360, 361]), make_cohort(tmp_path / "one", [360])
    request = ScoreRequest(trained.model, (both,), tmp_path / "run", alpha=0.05)
    score(request)
    before = contents(tmp_path / "run")
    other = replace(request, alpha=0.10, overwrite=True)
    with pytest.raises(BundleError, match=r"1 scans that are not among these sources \(sub-361_T1w\)"):
        score(replace(other, sources=(one,)))
    assert contents(tmp_path / "run") == before
    score(other)
    assert set(table(tmp_path / "run")["calibration_id"]) == {
        read_json(tmp_path / "run" / "run.json")["calibration"]["calibration_id"]
    }


def test_a_split_that_no_scan_has_is_an_error_that_lists_the_splits(trained: Trained, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", [370], split="test")
    with pytest.raises(CohortError, match=r"split 'tset'; splits present: test \(1\)"):
        score(ScoreRequest(trained.model, (cohort,), tmp_path / "run", split="tset"))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_a_model_that_would_run_a_program_scores_with_consent_only(trained: Trained, tmp_path: Path) -> None:
    config = yaml.safe_load(trained.config.read_text(encoding="utf-8"))
    config["preprocessing"]["brain_mask"]["command"] = "extract -i {input} -m {mask}"
    (tmp_path / "command.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    cohort = make_cohort(tmp_path / "cohort", range(380, 386))
    cohort_json = read_json(cohort / "cohort.json")
    cohort_json["chain"]["brain_mask"]["command"] = "extract -i {input} -m {mask}"
    write_json(cohort / "cohort.json", cohort_json)
    train(tmp_path / "command.yaml", cohort, tmp_path / "model")

    request = ScoreRequest(tmp_path / "model", (cohort,), tmp_path / "run")
    with pytest.raises(CommandRefusedError, match=r"'extract -i \{input\} -m \{mask\}'; .*--allow-command"):
        score(request)
    with pytest.raises(CommandRefusedError, match="would run a program"):
        calibrate(tmp_path / "model", cohort, [0.2], "tests")
    assert score(replace(request, allow_command=True))["scored"] == 6


@pytest.mark.slow
def test_a_run_of_a_shipped_model_says_for_which_scanner_its_threshold_holds(
    shipped_model: Path, trained: Trained, abnormal: Path, tmp_path: Path
) -> None:
    summary = score(ScoreRequest(Path("default"), (abnormal,), tmp_path / "run", alpha=0.05))
    own = score(ScoreRequest(trained.model, (abnormal,), tmp_path / "own", alpha=0.05))

    assert (summary["scored"], summary["flagged"]) == (3, own["flagged"])
    assert summary["notices"] == [SHIPPED_CALIBRATION] == read_json(tmp_path / "run" / "run.json")["notices"]
    assert read_json(tmp_path / "run" / "run.json")["model"]["shipped"]["licence"] == "CC0"
    assert own["notices"] == []
    for name in ("score", "p_value"):
        np.testing.assert_allclose(table(tmp_path / "run")[name], table(tmp_path / "own")[name], rtol=1e-3)
