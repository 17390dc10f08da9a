"""The whole chain on a part of the sample scans, as a user types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from anomaly.core.files import read_json
from pipelines.common import SAMPLE
from pipelines.demo import demo

pytestmark = pytest.mark.slow


N_SCANS = {
    ("T1w", "train", "healthy"): 4,
    ("T1w", "calibration", "healthy"): 4,
    ("T1w", "test", "healthy"): 2,
    ("T1w", "test", "lesion"): 2,
    ("CT", "test", "healthy"): 1,  # refused: the model is for T1w
}
ALPHA = "0.2"  # the lowest rate that four calibration scans allow is 1 of 5


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like ``sample_data``, with some of its scans and all that must be refused."""
    folder = tmp_path_factory.mktemp("sample")
    scans = pd.read_csv(SAMPLE / "manifest.csv", dtype=str, keep_default_na=False)
    groups = scans.groupby(["modality", "split", "group"], sort=False)
    chosen = pd.concat([groups.get_group(group).head(n) for group, n in N_SCANS.items()])
    for column in ("path", "mask"):
        chosen[column] = [str(SAMPLE / path) if path else "" for path in chosen[column]]
    chosen.to_csv(folder / "manifest.csv", index=False)
    labels = pd.read_csv(SAMPLE / "labels.tsv", sep="\t", dtype=str, keep_default_na=False)
    labels["mask"] = [str(SAMPLE / path) if path else "" for path in labels["mask"]]
    labels.to_csv(folder / "labels.tsv", sep="\t", index=False)
    (folder / "refuse").symlink_to(SAMPLE / "refuse")
    return folder


@pytest.fixture(scope="module")
def finished(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo(folder, config="atlas-small", sample=sample, alpha=ALPHA)
    return folder


def scores(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "scores.parquet").set_index("scan_id")


def test_the_demo_ends_with_a_worklist_and_a_page_for_each_scan(finished: Path) -> None:
    scored = scores(finished / "run").query("status == 'scored'").index

    assert len(scored) == 4
    assert (finished / "run" / "index.html").is_file()
    assert all((finished / "run" / scan / "report.html").is_file() for scan in scored)
    assert (finished / "run" / "evaluation" / "results.md").is_file()


def test_every_scan_that_must_be_refused_is_refused_with_a_reason_and_a_remedy(finished: Path) -> None:
    left_out = pd.read_csv(finished / "run" / "refused_failed.tsv", sep="\t")

    assert (left_out["status"] == "refused").all()
    assert {"wrong_modality", "not_3d", "missing_slices", "non_image", "unreadable"} <= set(left_out["reason_code"])
    assert left_out[["reason", "remedy"]].notna().all(axis=None)


def test_a_finished_demo_may_be_run_again(finished: Path, sample: Path) -> None:
    before = (finished / "model" / "metadata.json").read_bytes()

    demo(finished, config="atlas-small", sample=sample, alpha=ALPHA)

    assert (finished / "model" / "metadata.json").read_bytes() == before
    assert len(list((finished / "model" / "calibrations").glob("*.json"))) == 1


def test_lesions_score_above_healthy_scans(finished: Path) -> None:
    metrics = read_json(finished / "run" / "evaluation" / "metrics.json")

    assert next(iter(metrics["detection"].values()))["auroc"]["value"] > 0.7


def test_a_run_that_was_killed_continues_to_the_same_maps_and_scores(
    finished: Path, sample: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "anomaly", "score", str(finished / "model"), str(sample / "manifest.csv"),
        str(sample / "refuse"), "--split", "test", "-o", str(tmp_path / "run"), "-q",
    ]  # fmt: skip
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list((tmp_path / "run").glob("*/score.json"))) < 1 and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "run" / "scores.parquet").exists()

    again = subprocess.run(command, check=False, capture_output=True)

    assert again.returncode == 3
    pd.testing.assert_frame_equal(
        scores(tmp_path / "run").drop(columns="source"), scores(finished / "run").drop(columns="source")
    )
    for path in (finished / "run").rglob("*.nii.gz"):
        if "ingested" not in path.parts:
            assert (tmp_path / "run" / path.relative_to(finished / "run")).read_bytes() == path.read_bytes()
