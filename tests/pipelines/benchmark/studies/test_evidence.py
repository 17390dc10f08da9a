from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly.cohort.synthetic import PlantedScan
from pipelines.benchmark.studies.evidence import (
    CHANGES,
    benchmark_parser,
    changed,
    evidence_tables,
    open_model,
    parts,
    shown,
)
from tests.pipelines.cohorts import GRID, healthy
from tests.pipelines.conftest import Trained

SHAPE_CENTRES = [(6, 9, 7), (10, 8, 7)]


@pytest.fixture(scope="module")
def tables(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    shapes = tmp_path_factory.mktemp("shapes")
    for n, centre in enumerate(SHAPE_CENTRES):
        distance = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - centre, axis=-1)
        nib.save(nib.Nifti1Image((distance < 2.5).astype(np.uint8), GRID.affine), shapes / f"{n}.nii.gz")
    return evidence_tables({"first": trained.model, "second": trained.model}, trained.training, shapes)


def test_every_choice_has_a_row_with_both_kinds_of_lesion(tables: dict[str, pd.DataFrame]) -> None:
    parts = tables["parts"].set_index("evidence")
    assert parts.columns.tolist() == ["dark, AP", "dark, best Dice", "bright, AP", "bright, best Dice"]
    assert parts.index[0] == "as shipped"
    assert "`residual` alone" not in parts.index  # it is the only map of this model
    assert ((parts > 0) & (parts <= 1)).all(axis=None)


def test_a_choice_changes_what_it_should(tables: dict[str, pd.DataFrame]) -> None:
    parts = tables["parts"].set_index("evidence")
    shipped = parts.loc["as shipped"]
    for weight in ("0.7", "0.01"):
        assert parts.loc[f"`bright_weight: {weight}`", "bright, AP"] < shipped["bright, AP"]
        assert parts.loc[f"`bright_weight: {weight}`", "dark, AP"] > shipped["dark, AP"]
    assert parts.loc["`dark_weight: 0.01`", "dark, AP"] < 0.2 < shipped["dark, AP"]
    changed = ["median_voxels: 3", "smoothing_mm: 0.0", "sd_floor: 0.1", "standardise: none", "flip_average: true"]
    for what in changed:
        assert not parts.loc[f"`{what}`"].equals(shipped)


def test_a_choice_that_is_the_shipped_one_has_no_row_of_its_own(tables: dict[str, pd.DataFrame]) -> None:
    rows = set(tables["parts"]["evidence"])
    assert not rows & {"`bright_weight: 1.0`", "`median_voxels: 0`", "`standardise: voxelwise`", "`erode_mm: 0.0`"}


def test_an_edge_that_is_left_out_costs_the_lesions_in_it(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.benchmark.studies.evidence.CHOICES", {"erode_mm": (9.0,)})  # more than a voxel
    voxels, mask = healthy(0)
    edge = mask & ~ndimage.binary_erosion(mask)
    scan = PlantedScan(np.where(edge, voxels * 0.3, voxels).astype(np.float32), mask, edge, "dark", 0.7)
    table = parts(open_model(trained.model, trained.training), {"dark": [scan]}).set_index("evidence")
    assert table.loc["as shipped", "dark, AP"] > 0.8
    assert table.loc["`erode_mm: 9.0`", "dark, AP"] < 0.5


def test_every_model_meets_the_same_changed_scans(tables: dict[str, pd.DataFrame]) -> None:
    others = tables["other_scans"].set_index("scans")
    assert others.index.tolist() == list(CHANGES)
    assert others["first"].equals(others["second"])
    assert others.loc["as they are", "first"] == tables["parts"]["dark, AP"][0]
    assert others["first"].nunique() == len(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_the_background_and_repeats(name: str) -> None:
    voxels, mask = healthy(0)
    scan = PlantedScan(voxels, mask, mask, "dark", 0.3)
    once, again, other = (changed(scan, CHANGES[name], number) for number in (1, 1, 2))
    assert once.dtype == np.float32
    assert (once[~mask] == voxels[~mask]).all()
    assert np.array_equal(once, again)
    assert np.array_equal(once, other) == (name not in ("noise, SD 0.05", "bias field, ± 10 %"))


def test_figures_are_shown_with_three_decimals() -> None:
    assert "| noise | 0.500 |" in shown(pd.DataFrame([{"scans": "noise", "dae": 0.49996}]))


def test_the_folder_of_lesions_is_asked_for_unless_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANOMALY_DATA", "/data")
    assert benchmark_parser("A table.").parse_args(["work"]).data == Path("/data")
    monkeypatch.delenv("ANOMALY_DATA")
    with pytest.raises(SystemExit):
        benchmark_parser("A table.").parse_args(["work"])
    assert "--data" in capsys.readouterr().err
