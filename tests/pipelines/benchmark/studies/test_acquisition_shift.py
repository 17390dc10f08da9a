from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.cohort.planted_lesions import PlantedScan
from pipelines.benchmark.studies.acquisition_shift import CHANGES, acquisition_shift_table, apply_change
from pipelines.benchmark.studies.common import load_benchmark_model, plant_held_out_scans, voxel_ap
from tests.pipelines.cohorts import healthy
from tests.pipelines.conftest import Trained

RANDOM_CHANGES = ("noise, SD 0.05", "bias field, ± 10 %")


@pytest.mark.slow
def test_every_model_scores_the_same_changed_scans(trained: Trained, lesion_shapes_folder: Path) -> None:
    models = {"first": trained.model, "second": trained.model}
    table = acquisition_shift_table(models, trained.training, lesion_shapes_folder).set_index("scans")
    assert table.index.tolist() == list(CHANGES)
    assert table["first"].equals(table["second"])
    assert table["first"].nunique() == len(CHANGES)

    model = load_benchmark_model(trained.model, trained.training)
    planted = plant_held_out_scans(model, lesion_shapes_folder)["dark"]
    unchanged = [voxel_ap(scan, model.scorer.score(scan.voxels, scan.mask)) for scan in planted]
    assert table.loc["unchanged", "first"] == np.mean(unchanged)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leaves_the_background_alone_and_is_repeatable(name: str) -> None:
    voxels, mask = healthy(0)
    scan = PlantedScan(voxels, mask, mask, "dark", 0.3)
    once, again, other = (apply_change(scan, CHANGES[name], number) for number in (1, 1, 2))
    assert once.dtype == np.float32
    assert (once[~mask] == voxels[~mask]).all()
    assert np.array_equal(once, again)
    assert np.array_equal(once, other) == (name not in RANDOM_CHANGES)
