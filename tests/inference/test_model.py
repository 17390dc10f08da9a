from __future__ import annotations

import doctest
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import anomaly
from anomaly.calibration import record as calibrations
from anomaly.core.errors import ConfigError, ScanRefusedError, UncalibratedError
from anomaly.core.scan_result import ScanResult
from anomaly.inference.model import Model, load_model
from anomaly.inference.scan_warnings import SHIPPED_CALIBRATION
from anomaly.inference.template_scan import TemplateScan
from anomaly.runs.reader import read_volumes
from pipelines.ingest import ingest
from pipelines.scan_input import open_scans
from pipelines.score import ScoreRequest, score
from pipelines.train import train
from tests.pipelines.cohorts import OBLIQUE, SCAN, make_cohort
from tests.pipelines.conftest import Trained

pytestmark = pytest.mark.slow  # trains and scores


@pytest.fixture(scope="module")
def model(trained: Trained) -> Model:
    return load_model(trained.model, alpha=0.05, device="cpu")


@pytest.fixture(scope="module")
def scan(model: Model, tmp_path_factory: pytest.TempPathFactory) -> TemplateScan:
    """Return a prepared scan with a dark lesion."""
    folder = make_cohort(tmp_path_factory.mktemp("new") / "cohort", [400], lesion=True)
    (found,) = open_scans([folder], folder / "ingested", model.bundle.config, jobs=1)
    return found.load()


def result_of(model: Model, scan: TemplateScan) -> ScanResult:
    return model.to_result(scan, model.postprocess(model.infer(scan)))


def test_a_result_has_maps_on_the_scans_own_grid(model: Model, scan: TemplateScan) -> None:
    result = result_of(model, scan)

    assert result.scan_id == "sub-400_acq-lesion_T1w"
    assert result.evidence.shape == result.flagged_mask.shape == SCAN.shape
    np.testing.assert_array_equal(result.geometry.affine, OBLIQUE)
    assert result.template.evidence.shape == model.bundle.grid.shape
    assert 0 < result.flagged_mask.sum() < result.evidence.size


def test_a_lesion_is_flagged_with_its_p_value_and_regions(model: Model, scan: TemplateScan) -> None:
    result = result_of(model, scan)

    assert result.flagged is True
    assert result.score == result.scores[result.score_name] > (result.threshold or 0)
    assert result.p_value == pytest.approx(1 / 25)
    assert result.percentile == 100
    assert result.regions[0].polarity == "dark"
    assert (result.alpha, result.model_id) == (0.05, model.model_id)
    assert result.calibration_id.startswith("cal-")
    assert {"similarity", "brain_volume_ml"} <= set(result.numbers)


def test_a_model_without_a_calibration_gives_scores_and_maps_alone(trained: Trained, scan: TemplateScan) -> None:
    result = result_of(Model(load_model(trained.model, device="cpu").bundle), scan)

    assert result.score > 0
    assert result.evidence.max() > 0
    assert (result.p_value, result.percentile, result.flagged, result.threshold) == (None, None, None, None)
    assert result.regions == ()
    assert not result.flagged_mask.any()


def test_a_calibration_is_chosen_by_rate_or_by_id_or_is_the_newest(trained: Trained) -> None:
    loose = calibrations.for_alpha(trained.model, 0.10).record.calibration_id
    newest = calibrations.latest(trained.model)

    assert newest is not None
    assert load_model(trained.model).calibration_id == newest.record.calibration_id
    assert load_model(trained.model, alpha=0.10).calibration_id == loose
    assert load_model(trained.model, calibration=loose).calibration_id == loose
    with pytest.raises(ConfigError, match=r"target false-positive rate of 0\.1, but alpha 0\.05 was asked for"):
        load_model(trained.model, alpha=0.05, calibration=loose)
    with pytest.raises(UncalibratedError, match=r"valid: 0\.05, 0\.1"):
        load_model(trained.model, alpha=0.01)


def test_a_model_folder_without_a_calibration_can_be_loaded(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.model, tmp_path / "model"))
    shutil.rmtree(folder / "calibrations")

    assert load_model(folder).calibration is None
    with pytest.raises(UncalibratedError, match="has no calibration"):
        load_model(folder, alpha=0.05)


def test_a_scan_unlike_the_training_scans_is_refused_with_what_to_do(model: Model, scan: TemplateScan) -> None:
    inverted = replace(scan, voxels=np.where(scan.mask, 1.4 - scan.voxels, 0).astype(np.float32))

    with pytest.raises(ScanRefusedError) as refusal:
        model.infer(inverted)
    assert refusal.value.code == "unlike_training_data"
    assert refusal.value.found.startswith("a median block correlation of -")
    assert refusal.value.expected == "at least 0.40"
    assert "check modality" in refusal.value.remedy


def test_quality_warnings_of_the_scan_come_first(model: Model, scan: TemplateScan) -> None:
    assert result_of(model, replace(scan, warnings=("found 20 different values",))).warnings == (
        "found 20 different values",
        *result_of(model, scan).warnings,
    )


@pytest.fixture(scope="module")
def sample_model(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds ``model/``, an atlas of six scans, and ``sample_data/``."""
    folder = tmp_path_factory.mktemp("sample")
    scans = [sample_data / "mr" / f"sub-{n:02d}" for n in range(1, 7)]
    ingest(scans, folder / "cohort", preprocessing="t1w-4mm", jobs=1)
    train("atlas-small", folder / "cohort", folder / "model")
    (folder / "sample_data").symlink_to(sample_data)
    return folder


@pytest.mark.slow
def test_one_call_gives_what_the_command_line_writes(sample_model: Path, sample_data: Path, tmp_path: Path) -> None:
    path = sample_data / "mr" / "sub-53" / "anat" / "sub-53_T1w.nii.gz"
    score(ScoreRequest(sample_model / "model", (path,), tmp_path, jobs=1))
    row = pd.read_parquet(tmp_path / "scores.parquet").iloc[0]
    model = anomaly.load_model(sample_model / "model")
    result, of_loaded_scan = model.score(path), model.score(anomaly.load_scan(path))

    assert result.scores == {name: row[f"score_{name}"] for name in result.scores}
    assert result.score == row["score"]
    assert result.scores == of_loaded_scan.scores
    np.testing.assert_array_equal(result.evidence, of_loaded_scan.evidence)
    np.testing.assert_array_equal(
        result.template.evidence.astype(np.float16), read_volumes(tmp_path, "sub-53_T1w").evidence
    )


@pytest.mark.slow
def test_the_example_of_the_docstring_runs(sample_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sample_model)
    (example,) = doctest.DocTestFinder().find(load_model, "load_model")
    assert doctest.DocTestRunner().run(example) == (0, 6)


def test_the_public_names_of_the_package_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, anomaly; heavy = {'numpy', 'torch', 'pandas', 'pydantic'} & sys.modules.keys();"
        "print(sorted(heavy), [callable(getattr(anomaly, name)) for name in ('load_model', 'load_scan', 'Model')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[] [True, True, True]\n"
    assert {"load_model", "load_scan", "Model", "ScanResult"} <= set(dir(anomaly))
    with pytest.raises(AttributeError, match="no attribute 'load_moddel'"):
        anomaly.load_moddel  # noqa: B018


def test_a_shipped_model_is_loaded_by_its_name_and_its_results_say_for_which_scanner_they_hold(
    shipped_model: Path, scan: TemplateScan
) -> None:
    model = load_model("default", device="cpu")
    assert model.bundle.folder == shipped_model
    result = result_of(model, scan)
    assert result.flagged
    assert result.notices == (SHIPPED_CALIBRATION,)
    assert result_of(replace(model, calibration=None), scan).notices == ()
