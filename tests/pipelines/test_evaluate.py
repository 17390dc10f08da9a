from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from anomaly.core.errors import InputError
from anomaly.evaluation.compare import compare
from anomaly.evaluation.run_metrics import EvaluationSettings
from pipelines.evaluate import evaluate, read_per_scan
from tests.pipelines.run_folder import make_run

pytestmark = pytest.mark.slow  # evaluates runs

FEW = EvaluationSettings(n_draws=50)


def test_an_evaluation_writes_tables_figures_and_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate(run, tmp_path / "labels.tsv", settings=FEW)
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
        "calibration.png",
        "metrics.json",
        "metrics.tsv",
        "per_scan.parquet",
        "per_scan.tsv",
        "precision_recall.png",
        "results.md",
        "roc.png",
    ]


def test_the_numbers_on_disk_are_those_returned(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = evaluate(run, tmp_path / "labels.tsv", output=tmp_path / "out", settings=FEW)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert stored == result["metrics"]
    assert stored["detection"]["reconstruction (declared)"]["auroc"]["value"] == result["auroc"]
    assert stored["localisation"]["dice"]["value"] == result["dice"]
    assert stored["run"]["model_id"] == "abc"
    assert stored["scans"] == {
        "healthy_scans": 12,
        "lesion_scans": 8,
        "lesion_masks_used": 8,
        "subjects": 20,
        "unlabelled": [],
        "unscored": ["sub-99_T1w"],
    }
    assert stored["settings"]["n_draws"] == 50


def test_the_summary_says_whether_the_fpr_is_within_its_target(tmp_path: Path) -> None:
    result = evaluate(make_run(tmp_path), tmp_path / "labels.tsv", settings=FEW)
    assert result["target"] == "within"
    assert result["target_false_positive_rate"] == 0.05
    assert json.dumps(result, allow_nan=False)


def test_the_page_names_oracles_as_such(tmp_path: Path) -> None:
    result = evaluate(make_run(tmp_path), tmp_path / "labels.tsv", settings=FEW)
    text = Path(result["report"]).read_text(encoding="utf-8")
    assert "oracle dice one threshold" in text
    assert "thresholds chosen with the lesion masks" in text
    assert "12 healthy and 8 lesion scans of 20 subjects" in text
    assert "99 % beta-binomial band" in text
    assert "8 of 8" in text
    assert "Research use only" in text


def test_the_page_gives_the_fpr_by_age_and_says_where_scans_are_too_few(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    labels = pd.read_csv(tmp_path / "labels.tsv", sep="\t", dtype=str, keep_default_na=False)
    labels.assign(age="70").to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    known = evaluate(run, tmp_path / "labels.tsv", settings=FEW)
    labels.assign(age=["30"] * 9 + ["70"] * 12).to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    few = evaluate(run, tmp_path / "labels.tsv", output=tmp_path / "few", settings=FEW)

    text = Path(known["report"]).read_text(encoding="utf-8")
    assert "### By age and sex" in text
    assert "| 60 years and older | 0.05 | " in text
    assert "too few" not in text
    assert Path(few["report"]).read_text(encoding="utf-8").count("too few scans") == 4
    assert few["metrics"]["subgroup_fprs"][0]["group"] == "under 40 years"


def test_a_run_without_a_calibration_has_no_fpr_on_its_page(tmp_path: Path) -> None:
    result = evaluate(make_run(tmp_path, calibrated=False), tmp_path / "labels.tsv", settings=FEW)
    assert result["target"] is None
    assert "False-positive rate" not in Path(result["report"]).read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "evaluation" / "calibration.png").exists()


def test_healthy_scans_alone_are_a_valid_evaluation(tmp_path: Path) -> None:
    result = evaluate(make_run(tmp_path, n_abnormal=0), tmp_path / "labels.tsv", settings=FEW)
    assert result["auroc"] is None
    assert not (tmp_path / "run" / "evaluation" / "roc.png").exists()


@pytest.mark.slow
def test_evaluations_of_two_runs_can_be_compared(tmp_path: Path) -> None:
    tables = {}
    for name, seed in [("dae", 0), ("atlas", 1)]:
        folder = tmp_path / name
        evaluate(make_run(folder, seed=seed), folder / "labels.tsv", settings=FEW)
        tables[name] = read_per_scan(folder / "run" / "evaluation")
    found = compare(tables, n_draws=50)
    assert found.n_scans == 20
    assert found.difference("dae", "atlas", "dice").value == 0


def test_the_table_for_analysts_has_one_row_per_labelled_scan(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate(run, tmp_path / "labels.tsv", settings=FEW)
    table = pd.read_csv(run / "evaluation" / "per_scan.tsv", sep="\t")
    assert len(table) == 21
    assert {"scan_id", "subject", "is_abnormal", "score", "p_value", "voxel_average_precision", "dice"} <= set(
        table.columns
    )


def test_an_evaluation_is_written_into_the_audit_log(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate(run, tmp_path / "labels.tsv", settings=FEW)
    line = json.loads((run / "audit.jsonl").read_text(encoding="utf-8"))
    assert (line["verb"], line["labels"]) == ("evaluate", "labels.tsv")


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="anomaly evaluate"):
        read_per_scan(tmp_path)
