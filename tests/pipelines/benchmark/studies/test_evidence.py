from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly.cohort.planted_lesions import PlantedScan
from pipelines.benchmark.studies.common import load_benchmark_model, plant_held_out_scans
from pipelines.benchmark.studies.evidence import evidence_table
from tests.pipelines.cohorts import healthy
from tests.pipelines.conftest import Trained


@pytest.fixture(scope="module")
def table(trained: Trained, lesion_shapes_folder: Path) -> pd.DataFrame:
    model = load_benchmark_model(trained.model, trained.training)
    return evidence_table(model, plant_held_out_scans(model, lesion_shapes_folder)).set_index("evidence")


@pytest.mark.slow
def test_every_alternative_has_a_row_with_both_kinds_of_lesion(table: pd.DataFrame) -> None:
    assert table.columns.tolist() == ["dark, AP", "dark, best Dice", "bright, AP", "bright, best Dice"]
    assert table.index[0] == "as shipped"
    assert "`residual` alone" not in table.index  # it is the only map of this model
    assert ((table > 0) & (table <= 1)).all(axis=None)


def test_an_alternative_has_its_expected_effect(table: pd.DataFrame) -> None:
    shipped = table.loc["as shipped"]
    for weight in ("0.7", "0.01"):
        assert table.loc[f"`bright_weight: {weight}`", "bright, AP"] < shipped["bright, AP"]
        assert table.loc[f"`bright_weight: {weight}`", "dark, AP"] > shipped["dark, AP"]
    assert table.loc["`dark_weight: 0.01`", "dark, AP"] < 0.2 < shipped["dark, AP"]
    changed = ["median_voxels: 3", "smoothing_mm: 0.0", "sd_floor: 0.1", "standardise: none", "flip_average: true"]
    for setting in changed:
        assert not table.loc[f"`{setting}`"].equals(shipped)


def test_a_shipped_value_has_no_row_of_its_own(table: pd.DataFrame) -> None:
    shipped = {"`bright_weight: 1.0`", "`median_voxels: 0`", "`standardise: voxelwise`", "`erode_mm: 0.0`"}
    assert not shipped & set(table.index)


def test_eroding_the_evidence_costs_lesions_at_the_edge(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    alternatives = {"erode_mm": (9.0,)}  # more than a voxel
    monkeypatch.setattr("pipelines.benchmark.studies.evidence.ALTERNATIVES", alternatives)
    voxels, mask = healthy(0)
    edge = mask & ~ndimage.binary_erosion(mask)
    scan = PlantedScan(np.where(edge, voxels * 0.3, voxels).astype(np.float32), mask, edge, "dark", 0.7)
    model = load_benchmark_model(trained.model, trained.training)
    table = evidence_table(model, {"dark": [scan]}).set_index("evidence")
    assert table.loc["as shipped", "dark, AP"] > 0.8
    assert table.loc["`erode_mm: 9.0`", "dark, AP"] < 0.5
