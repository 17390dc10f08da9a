from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from anomaly.core.errors import ConfigError
from anomaly.models.diffusion import DiffusionSettings
from pipelines.benchmark.studies.common import load_benchmark_model
from pipelines.benchmark.studies.function_evaluations import evaluation_numbers, evaluations_table, with_evaluations
from pipelines.train import train
from tests.pipelines.cohorts import GRID, make_cohort, write_config
from tests.pipelines.conftest import Trained


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [3, 9, 51]),
        ({"levels": (0.25,), "n_function_evaluations": 1}, [1, 10, 50]),
        ({"masked": "patch", "patch_sets": 4, "n_function_evaluations": 12}, [12, 60]),
    ],
)
def test_the_smallest_number_about_ten_and_about_fifty_evaluations_are_compared(
    changes: dict[str, object], expected: list[int]
) -> None:
    assert evaluation_numbers(DiffusionSettings.model_validate(changes)) == expected


@pytest.mark.slow
def test_each_number_has_a_row_with_its_difference_from_the_largest(tmp_path: Path) -> None:
    path = write_config(tmp_path / "d.yaml", "diffusion", channels=[8, 8], levels=[0.25], n_function_evaluations=1)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"training": {"steps": 2, "batch_size": 4}}))
    cohort, shapes = make_cohort(tmp_path / "cohort", range(12)), tmp_path / "shapes"
    train(path, cohort, tmp_path / "model", device="cpu")
    shapes.mkdir()
    distance = np.linalg.norm(np.moveaxis(np.indices(GRID.shape), 0, -1) - (6, 9, 7), axis=-1)
    nib.save(nib.Nifti1Image((distance < 2.5).astype(np.uint8), GRID.affine), shapes / "0.nii.gz")
    model = load_benchmark_model(tmp_path / "model", cohort)

    table = evaluations_table(model, shapes).set_index("evaluations")

    assert table.index.tolist() == [1, 10, 50]
    assert table.loc[50, "dark, minus 50"] == "0.000 (0.000 to 0.000)"
    assert table["dark, AP"].nunique() > 1
    assert table.loc[1, "time per scan"] == "1.0 ×"
    assert model.scorer.detector.settings.n_function_evaluations == 1  # type: ignore[attr-defined]  # left as it was
    assert with_evaluations(model, 10).reference is not model.scorer.reference


def test_a_model_of_another_family_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found a model of family 'atlas'; expected 'diffusion'"):
        evaluations_table(load_benchmark_model(trained.model, trained.training), tmp_path)
