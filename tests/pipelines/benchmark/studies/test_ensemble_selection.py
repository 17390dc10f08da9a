from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly.scoring.settings import EvidenceSettings
from pipelines.benchmark.studies.ensemble_selection import Case, precisions, selected, selection_table
from tests.pipelines.cohorts import GRID
from tests.pipelines.conftest import Trained

READING = EvidenceSettings(dark_weight=1.0, bright_weight=0.5)


def case(seed: int, **noise: float) -> Case:
    """Return a scan with a dark lesion and models that see it through noise of their own."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(500) < 50
    maps = {name: (-2.0 * lesion + rng.normal(0, sd, 500)).astype(np.float16) for name, sd in noise.items()}
    return Case("dark", seed, maps, lesion)


def test_models_whose_errors_differ_are_merged_while_it_helps() -> None:
    cases = [case(seed, a=1.0, b=1.0, useless=30.0) for seed in range(6)]
    rounds = selected(cases, Counter(a=1), ["a", "b", "useless"], READING)
    found = [np.mean(precisions(cases, members, READING)) for members in rounds]
    assert rounds[1] == Counter(a=1, b=1)
    assert all("useless" not in members for members in rounds)
    assert found == sorted(found)


def test_a_model_that_nothing_helps_stays_alone() -> None:
    cases = [case(seed, perfect=0.0, other=5.0) for seed in range(3)]
    assert selected(cases, Counter(perfect=1), ["perfect", "other"], READING) == [Counter(perfect=1)]


def test_bright_and_dark_are_weighed_as_the_reading_says() -> None:
    signed = np.array([-1.0, 1.5, 0.0, 0.0], dtype=np.float16)
    dark = Case("dark", 0, {"a": signed}, np.array([True, False, False, False]))
    assert dark.precision({"a": 1}, READING) == 1.0
    assert dark.precision({"a": 1}, EvidenceSettings(bright_weight=1.0)) == pytest.approx(0.5)


def test_the_table_begins_with_the_best_single_model(trained: Trained, tmp_path: Path) -> None:
    distance = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - (6, 9, 7), axis=-1)
    nib.save(nib.Nifti1Image((distance < 2.5).astype(np.uint8), GRID.affine), tmp_path / "0.nii.gz")
    table = selection_table({"first": trained.model, "same": trained.model}, trained.training, tmp_path)
    assert table.loc[0, "members"] == "first × 1"
    assert table.loc[0, "minus first"] == "0.000 (0.000 to 0.000)"
    assert {"dark, AP", "bright, AP"} < set(table.columns)
