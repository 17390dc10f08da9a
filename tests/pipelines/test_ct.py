"""CT heads through the whole library: Hounsfield units in, a bleed found in the scan's own space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly.cohort.table import read_records, write_manifest
from anomaly.core.results import ScanStatus
from pipelines.ingest import ingest
from pipelines.score import ScoreRequest, score
from pipelines.train import train

pytestmark = pytest.mark.slow

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


def test_the_bleed_is_the_most_anomalous_place_of_its_scan(run: Path, sample_data: Path) -> None:
    name = "sub-67_ct"
    evidence = np.asarray(nib.load(run / name / f"{name}_desc-anomaly_map.nii.gz").dataobj)
    rows = pd.read_csv(sample_data / "manifest.csv").set_index("subject")
    bleed = np.asarray(nib.load(sample_data / rows.loc["sub-67", "mask"]).dataobj) > 0

    assert evidence.shape == bleed.shape
    assert np.median(evidence[bleed]) > 4 * np.median(evidence[(evidence > 0) & ~bleed])


def test_t1_scans_are_refused_by_a_ct_model(run: Path) -> None:
    rows = pd.read_parquet(run / "scores.parquet").set_index("scan_id")

    assert rows.loc["sub-45_T1w", "status"] == ScanStatus.REFUSED.value
    assert rows.loc["sub-45_T1w", "reason_code"] == "wrong_modality"
