"""Models and run folders of an earlier version still work and give the same numbers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from anomaly.bundle.config import ExperimentConfig
from anomaly.bundle.ensemble import open_bundle, stored_config
from anomaly.calibration.record import latest
from anomaly.core.errors import BundleError
from anomaly.core.files import read_json, write_json
from pipelines.calibrate import calibrate
from pipelines.evaluate import evaluate
from pipelines.report import report
from pipelines.score import ScoreRequest, score
from tests.conftest import REPOSITORY

ARCHIVE = REPOSITORY / "tests" / "data" / "earlier_version" / "made_by_earlier_version.zip"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("model", "run"), [("dae", "run"), ("stacked", "run_stacked")])
@pytest.mark.slow
def test_an_earlier_model_gives_the_scores_it_gave_then(earlier: Path, model: str, run: str) -> None:
    score(ScoreRequest(earlier / model, (earlier / "cohort",), earlier / "again", device="cpu"))

    then, now = (pd.read_csv(earlier / folder / "scores.tsv", sep="\t") for folder in (run, "again"))
    numbers = [name for name in then.columns if name.startswith(("score", "p_", "percentile", "flagged", "n_reg"))]
    assert len(numbers) >= 8
    pd.testing.assert_frame_equal(
        now.sort_values("scan_id")[numbers], then.sort_values("scan_id")[numbers], check_exact=True
    )


def test_the_config_of_an_earlier_model_has_present_names(earlier: Path) -> None:
    dae, stacked = stored_config(earlier / "dae"), stored_config(earlier / "stacked")
    assert isinstance(dae, ExperimentConfig)
    assert isinstance(stacked, ExperimentConfig)
    assert list(dae.scoring.maps) == ["change_logit", "residual", "mean_deviation", "pca"]
    assert stacked.model["family"] == "stacked_ae"
    assert open_bundle(earlier / "stacked").metadata["family"] == "stacked_ae"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [("threshold", 1.0, "threshold"), ("reason", "others", "or reason or"), ("who", "bob", "or who or")],
)
def test_an_earlier_calibration_loads_and_an_edited_one_is_refused(
    earlier: Path, name: str, value: object, named: str
) -> None:
    (path,) = (earlier / "dae" / "calibrations").glob("*.json")
    found = latest(earlier / "dae")
    assert found is not None
    assert found.record.user_name == "root"
    write_json(path, read_json(path) | {name: value})
    with pytest.raises(BundleError, match=named):
        latest(earlier / "dae")


@pytest.mark.slow
def test_an_earlier_model_can_be_calibrated(earlier: Path) -> None:
    cohort = earlier / "cohort"
    summary = calibrate(earlier / "dae", cohort, [0.4], "tests", device="cpu")
    assert summary["model_id"] == "047c7944d116"


@pytest.mark.slow
def test_an_earlier_run_folder_can_be_reported(earlier: Path) -> None:
    worklist = report(earlier / "run", jobs=1)
    assert "sub-300_acq-lesion_T1w" in worklist.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_earlier_run_folder_can_be_evaluated(earlier: Path) -> None:
    labels = pd.DataFrame({"scan_id": ["sub-300_acq-lesion_T1w", "sub-301_acq-lesion_T1w"], "label": [0, 1]})
    labels.to_csv(earlier / "labels.tsv", sep="\t", index=False)
    evaluate(earlier / "run", earlier / "labels.tsv")
    metrics = (earlier / "run" / "evaluation" / "metrics.json").read_text(encoding="utf-8")
    assert '"auroc"' in metrics
