from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly.cohort.table import read_records, write_manifest
from anomaly.core.errors import CohortError
from pipelines.benchmark.studies.age import ALL_AGES, HealthyScores, LesionScores, age_table
from pipelines.train import train
from tests.pipelines.cohorts import make_cohort, write_config
from tests.pipelines.conftest import Trained

NAME = ALL_AGES


def test_the_correlation_is_of_ranks_and_leaves_out_unknown_ages() -> None:
    scores = np.array([1.0, 2.0, 10.0, 0.0])
    assert HealthyScores(np.array([20, 50, 80, np.nan]), {NAME: scores}).correlation(NAME) == pytest.approx(1)


def test_each_healthy_scan_is_compared_with_the_others_and_counted_in_its_age_band() -> None:
    ages = np.array([30.0] * 7 + [50.0] * 5 + [70.0] * 7)
    scores = np.arange(19.0)
    healthy = HealthyScores(ages, {NAME: scores})
    assert healthy.flagged_by_band(NAME, 0.1) == "0 of 7, 0 of 5, 1 of 7"
    assert healthy.mean_p_by_band(NAME) == "0.84, 0.53, 0.21"


def test_the_auroc_compares_scans_with_a_lesion_with_the_same_scans_without() -> None:
    given = "of that age"
    having = {NAME: np.array([3.0, 4, 1, 5]), given: np.array([3.0, 4, 3, 5])}
    without = {name: np.array([2.0, 2.0]) for name in having}
    lesions = LesionScores(dict.fromkeys(having, np.zeros(4)), having, without, ["a", "b"] * 2)

    assert (lesions.auroc(NAME), lesions.auroc(given)) == (0.75, 1.0)
    difference = lesions.auroc_minus_all_ages(given)
    assert (difference.value, difference.low, difference.high) == (0.25, 0.0, 0.5)


@pytest.mark.slow
def test_every_model_has_a_row_for_each_reference(tmp_path: Path, lesion_shapes_folder: Path) -> None:
    cohort = _cohort_with_splits(tmp_path)
    config = write_config(tmp_path / "atlas.yaml")
    train(config, cohort, tmp_path / "model")
    table = age_table({"atlas": tmp_path / "model"}, cohort, lesion_shapes_folder, other_scanner=cohort)

    assert table["model"].tolist() == ["atlas"] * 3
    assert table["healthy reference"].nunique() == 3
    assert table["AP minus all ages"].tolist()[0].startswith("0.000")
    assert table["flagged at 0.1, by age"].str.count("of").tolist() == [3] * 3


@pytest.mark.slow
def test_too_few_ages_are_an_error(trained: Trained, lesion_shapes_folder: Path) -> None:
    with pytest.raises(CohortError, match="too few training scans of known age"):
        age_table({"atlas": trained.model}, trained.training, lesion_shapes_folder, None)


def _cohort_with_splits(folder: Path) -> Path:
    make_cohort(folder / "cohort", range(30), split="train")
    records = [*read_records(folder / "cohort")]
    make_cohort(folder / "cohort", range(100, 106), split="test")
    write_manifest(folder / "cohort", [*records, *read_records(folder / "cohort")])
    return folder / "cohort"
