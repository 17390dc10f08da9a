from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.scoring.settings import EvidenceSettings
from pipelines.benchmark.studies.ensemble_selection import (
    ScoredLesion,
    forward_selection,
    selection_table,
    voxel_aps,
)
from tests.pipelines.cohorts import GRID
from tests.pipelines.conftest import Trained

SETTINGS = EvidenceSettings(dark_weight=1.0, bright_weight=0.5)


def scored_lesion(seed: int, **noise_sd: float) -> ScoredLesion:
    """Return a dark lesion with a map of each model: the lesion plus noise of the given SD."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(500) < 50
    maps = {name: (-2.0 * lesion + rng.normal(0, sd, 500)).astype(np.float16) for name, sd in noise_sd.items()}
    return ScoredLesion("dark", seed, maps, lesion)


def test_models_with_independent_errors_are_merged_while_the_voxel_ap_grows() -> None:
    lesions = [scored_lesion(seed, a=1.0, b=1.0, useless=30.0) for seed in range(6)]
    rounds = forward_selection(lesions, Counter(a=1), ["a", "b", "useless"], SETTINGS)
    aps = [np.mean(voxel_aps(lesions, members, SETTINGS)) for members in rounds]
    assert rounds[1] == Counter(a=1, b=1)
    assert all("useless" not in members for members in rounds)
    assert aps == sorted(aps)


def test_a_model_stays_alone_if_no_other_improves_it() -> None:
    lesions = [scored_lesion(seed, perfect=0.0, other=5.0) for seed in range(3)]
    assert forward_selection(lesions, Counter(perfect=1), ["perfect", "other"], SETTINGS) == [Counter(perfect=1)]


def test_bright_and_dark_residuals_are_weighted_by_the_evidence_settings() -> None:
    signed = np.array([-1.0, 1.5, 0.0, 0.0], dtype=np.float16)
    dark = ScoredLesion("dark", 0, {"a": signed}, np.array([True, False, False, False]))
    assert dark.voxel_ap({"a": 1}, SETTINGS) == 1.0
    assert dark.voxel_ap({"a": 1}, EvidenceSettings(bright_weight=1.0)) == pytest.approx(0.5)


def test_the_first_row_is_the_best_single_model(trained: Trained, tmp_path: Path) -> None:
    distance = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - (6, 9, 7), axis=-1)
    nib.save(nib.Nifti1Image((distance < 2.5).astype(np.uint8), GRID.affine), tmp_path / "0.nii.gz")
    table = selection_table({"first": trained.model, "same": trained.model}, trained.training, tmp_path)
    assert table.loc[0, "members"] == "first × 1"
    assert table.loc[0, "minus first"] == "0.000 (0.000 to 0.000)"
    assert {"dark, AP", "bright, AP"} < set(table.columns)
