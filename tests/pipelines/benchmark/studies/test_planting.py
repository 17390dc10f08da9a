from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.cohort.fine_grain import smooth_part
from anomaly.core.volume import FloatArray, Volume
from anomaly.preprocessing.chain import Chain, Prepared
from anomaly.preprocessing.grid import to_target_grid
from pipelines.benchmark.studies.planting import STAGES, GrainFeatures, planting_table
from tests.pipelines.cohorts import GRID, healthy, make_cohort, write_sources

MASK = np.ones((24, 24, 24), dtype=bool)
LESION, MIRRORED = np.zeros_like(MASK), np.zeros_like(MASK)
LESION[3:9, 6:18, 6:18] = True
MIRRORED[15:21, 6:18, 6:18] = True


def noise(rng: np.random.Generator) -> FloatArray:
    return np.asarray(rng.normal(100, 5, MASK.shape), dtype=np.float32)


def test_a_smoothed_lesion_is_told_by_its_grain(rng: np.random.Generator) -> None:
    voxels = noise(rng)
    smoothed = np.where(LESION, smooth_part(voxels, MASK), voxels)
    untouched, planted = (GrainFeatures.of(v, MASK, LESION, MIRRORED) for v in (voxels, smoothed))
    assert planted.energy < 0.3 * untouched.energy
    assert planted.asymmetry < -1 < untouched.asymmetry
    assert planted.among_others < 0.1
    assert untouched.among_others == pytest.approx(0.5, abs=0.15)


def test_a_grainy_lesion_raises_the_highest_energy_of_the_scan(rng: np.random.Generator) -> None:
    voxels = noise(rng)
    grainy = np.where(LESION, 100 + 3 * (voxels - 100), voxels)
    untouched, planted = (GrainFeatures.of(v, MASK, LESION, MIRRORED) for v in (voxels, grainy))
    assert planted.highest > untouched.highest + 1
    assert planted.among_others > 0.9


@pytest.mark.slow
def test_the_table_has_a_row_for_each_kind_and_stage(
    tmp_path: Path, lesion_shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_registration(self: Chain, volume: Volume) -> Prepared:
        del self
        _, mask = healthy(0)
        matrix = np.eye(4)
        return Prepared(to_target_grid(volume, GRID, matrix), mask, GRID, matrix, {})

    monkeypatch.setattr(Chain, "apply", without_registration)
    cohort = make_cohort(tmp_path / "cohort", range(3), split="test")
    write_sources(cohort)
    table = planting_table(cohort, lesion_shapes_folder, 3, ("dark", "texture"))
    assert list(zip(table["kind"], table["scans"], strict=True)) == [
        (kind, stage) for kind in ("dark", "texture") for stage in STAGES
    ]
    medians = table["energy, planted over untouched"].str.split().str[0].astype(float)
    assert (medians > 0).all()
    assert table["AUROC, scan"].str.contains("to").all()
