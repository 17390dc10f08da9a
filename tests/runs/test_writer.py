from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly.core.errors import BundleError
from anomaly.core.files import read_json
from anomaly.core.scan_result import ScanResult, TemplateVolumes
from anomaly.core.volume import Geometry
from anomaly.runs.reader import read_neighbours, read_run_info, read_volumes
from anomaly.runs.writer import check_run_folder, write_run_info, write_template_volumes

MODEL: dict[str, Any] = {
    "model_id": "75ba08c7d63b", "name": "toy", "family": "atlas", "data": {"n_train": 12},
    "display": {"evidence_typical": 2.0, "intensity_max": 1.5}, "hashes": {},
}  # fmt: skip
GRID = Geometry((4, 5, 6), np.diag([2.0, 2.0, 2.0, 1.0]))


def test_the_settings_of_a_run_are_read_back(tmp_path: Path) -> None:
    write_run_info(tmp_path, MODEL, {"scan_score": "kl", "standardise": "voxelwise"}, None)
    info = read_run_info(tmp_path)

    assert info.model == {
        "model_id": "75ba08c7d63b",
        "trained_on": {"n_train": 12},
        "name": "toy",
        "family": "atlas",
    }
    assert (info.score_name, info.calibration, info.threshold) == ("kl", None, None)
    assert info.in_healthy_sd
    assert read_json(tmp_path / "run.json")["version"] == 1


def test_the_notices_and_the_licence_of_a_shipped_model_are_read_back(tmp_path: Path) -> None:
    model = MODEL | {"shipped": {"licence": "CC BY-SA 3.0"}, "derived_from": "abc"}
    write_run_info(tmp_path, model, {"scan_score": "kl"}, None, ("one scanner only",))
    info = read_run_info(tmp_path)
    assert info.notices == ["one scanner only"]
    assert (info.model["shipped"], info.model["derived_from"]) == ({"licence": "CC BY-SA 3.0"}, "abc")


def test_without_a_calibration_the_colour_scale_follows_typical_evidence(tmp_path: Path) -> None:
    write_run_info(tmp_path, MODEL, {"scan_score": "kl"}, None)
    display = read_run_info(tmp_path).display
    assert (display.evidence_max, display.voxel_threshold, display.intensity_max) == (6.0, None, 1.5)


def test_the_window_of_a_ct_is_read_back(tmp_path: Path) -> None:
    display = {"evidence_typical": 2.0, "intensity_max": 1.0, "hu_min": 0.0, "hu_max": 80.0}
    write_run_info(tmp_path, {**MODEL, "display": display}, {"scan_score": "kl"}, None)
    found = read_run_info(tmp_path).display
    assert (found.hu_min, found.hu_max) == (0.0, 80.0)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    check_run_folder(tmp_path, "75ba08c7d63b", None)  # nothing there yet
    write_run_info(tmp_path, MODEL, {"scan_score": "kl"}, None)
    check_run_folder(tmp_path, "75ba08c7d63b", None)
    with pytest.raises(BundleError, match="holds results of model 75ba08c7d63b with calibration none"):
        check_run_folder(tmp_path, "another", None)


def test_template_volumes_are_read_back_to_half_precision(tmp_path: Path, rng: np.random.Generator) -> None:
    scan, reconstruction, evidence = rng.random((3, *GRID.shape)).astype(np.float32)
    mask = evidence > 0.3
    template = TemplateVolumes(scan, reconstruction, np.where(mask, evidence, 0), mask, GRID)
    slices = {"axial": np.arange(40, dtype=np.uint8).reshape(2, 4, 5)}
    result = ScanResult(
        "a", "kl", {"kl": 1.0}, evidence, mask, GRID, template, neighbour_slices=slices
    )  # fmt: skip
    write_template_volumes(tmp_path, result)
    found = read_volumes(tmp_path, "a")

    np.testing.assert_allclose(found.scan, scan, atol=1e-3)
    np.testing.assert_allclose(found.evidence, template.evidence, atol=1e-3)
    np.testing.assert_array_equal(found.mask, mask)
    assert found.geometry.same_as(GRID)
    np.testing.assert_array_equal(read_neighbours(tmp_path, "a")["axial"], slices["axial"])


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}"])
def test_damaged_settings_do_not_stop_a_run_which_writes_them_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    check_run_folder(tmp_path, "abc", None)
