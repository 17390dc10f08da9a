"""CT heads through the whole library: Hounsfield units in, lesions found in the scan's own space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly.cohort.table import read_records, write_manifest
from anomaly.core.files import read_json
from anomaly.core.results import ScanStatus
from anomaly.runs.reader import read_run_info
from pipelines.ingest import ingest, load_chain
from pipelines.score import ScoreRequest, score
from pipelines.train import train
from tests.pipelines.ct_cohort import make_ct_cohort

SUBJECTS = ["sub-61", "sub-62", "sub-63", "sub-64", "sub-67", "sub-45"]
"""Four healthy CT scans, of which one is for calibration, a CT scan with a bleed, and a T1 scan."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, in_this_process: None) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    scans = pd.read_csv(sample_data / "manifest.csv", dtype=str, keep_default_na=False).set_index("subject")
    few = scans.loc[SUBJECTS].assign(mask="")
    few["path"] = [str(sample_data / path) for path in few["path"]]
    few.to_csv(folder / "manifest.csv")
    summary = ingest([folder / "manifest.csv"], folder / "cohort", preprocessing="ct")
    assert summary.accepted == len(SUBJECTS) - 1
    assert {reason.code for reason in summary.reasons} == {"wrong_modality"}
    records = read_records(folder / "cohort")  # three training scans are too few, so calibration scans join them
    write_manifest(
        folder / "cohort", [replace(r, split="train") if r.split == "calibration" else r for r in records]
    )
    train("atlas-ct", folder / "cohort", folder / "model")
    score(ScoreRequest(folder / "model", (folder / "cohort",), folder / "run", split="test"))
    return folder / "run"


@pytest.mark.slow
def test_the_bleed_is_the_most_anomalous_place_of_its_scan(run: Path, sample_data: Path) -> None:
    name = "sub-67_ct"
    evidence = np.asarray(nib.load(run / name / f"{name}_desc-anomaly_map.nii.gz").dataobj)
    rows = pd.read_csv(sample_data / "manifest.csv").set_index("subject")
    bleed = np.asarray(nib.load(sample_data / rows.loc["sub-67", "mask"]).dataobj) > 0

    assert evidence.shape == bleed.shape
    assert np.median(evidence[bleed]) > 4 * np.median(evidence[(evidence > 0) & ~bleed])


@pytest.mark.slow
def test_t1_scans_are_refused_by_a_ct_model(run: Path) -> None:
    rows = pd.read_parquet(run / "scores.parquet").set_index("scan_id")

    assert rows.loc["sub-45_T1w", "status"] == ScanStatus.REFUSED.value
    assert rows.loc["sub-45_T1w", "reason_code"] == "wrong_modality"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ct_cohort(tmp_path_factory.mktemp("ct_cohort"))


@pytest.fixture(scope="module")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ct_cohort(tmp_path_factory.mktemp("small_ct_cohort"), n_train=11)


def scores_of(config: str | Path, cohort: Path, folder: Path) -> dict[str, float]:
    """Train a T1w config on CT and return the score of every test scan by subject."""
    train(config, cohort, folder / "model", preprocessing="ct-4mm")
    score(ScoreRequest(folder / "model", (cohort,), folder / "run", split="test"))
    rows = pd.read_parquet(folder / "run" / "scores.parquet").set_index("subject")
    assert set(rows["status"]) == {ScanStatus.SCORED.value}
    return {subject: float(value) for subject, value in rows["score"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["atlas-small", pytest.param("pca-small", marks=pytest.mark.slow)])
def test_a_baseline_scores_bleed_and_infarct_above_the_same_scan_without(
    config: str, cohort: Path, tmp_path: Path
) -> None:
    found = scores_of(config, cohort, tmp_path)
    assert found["sub-bleed"] > 1.3 * found["sub-healthy"]
    assert found["sub-infarct"] > 1.3 * found["sub-healthy"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dae", "ae", "conv_lstm_ae", "vae", "hvae", "f_anogan", "diffusion", "flow"])
def test_a_network_trains_on_ct_and_scores_it(family: str, small_cohort: Path, tmp_path: Path) -> None:
    config = tmp_path / "short.yaml"
    config.write_text(
        f"extends: {family}-small\ntraining: {{steps: 4, batch_size: 2, warmup: 1, validate_every: 4}}\n"
    )
    found = scores_of(config, small_cohort, tmp_path)
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    assert len(set(found.values())) == len(found)
    assert read_json(tmp_path / "model" / "metadata.json")["modality"] == "CT"


@pytest.mark.slow
def test_the_figures_show_the_whole_window_of_ct(cohort: Path, tmp_path: Path) -> None:
    scores_of("intensity-small", cohort, tmp_path)
    display = read_run_info(tmp_path / "run").display
    low, high = load_chain("ct-4mm").intensity.range_hu or (0, 0)
    assert (display.intensity_max, display.hu_min, display.hu_max) == (1.0, low, high)
