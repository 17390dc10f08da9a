from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly.cohort.table import read_records, write_manifest
from pipelines.benchmark.studies.adaptation import adaptation_table, halves
from pipelines.train import train
from tests.pipelines.cohorts import make_brighter_cohort, make_cohort, write_config

SUBJECTS = ["a", "b", "b", "c", "d", "e", "f"]


def test_every_subject_is_once_in_each_half_of_a_split() -> None:
    splits = list(halves(SUBJECTS, 3))
    assert len(splits) == 6
    for adapt_to, score in splits:
        assert sorted(adapt_to + score) == list(range(len(SUBJECTS)))
        assert not {SUBJECTS[i] for i in adapt_to} & {SUBJECTS[i] for i in score}
    scored = [index for _, score in splits for index in score]
    assert np.bincount(scored).tolist() == [3] * len(SUBJECTS)
    assert splits == list(halves(SUBJECTS, 3))


@pytest.mark.slow
def test_adaptation_lowers_the_false_positive_rate_on_the_other_scanner(
    lesion_shapes_folder: Path, tmp_path: Path
) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(76))
    splits = ["train"] * 40 + ["calibration"] * 24 + ["test"] * 12
    records = [replace(record, split=split) for record, split in zip(read_records(cohort), splits, strict=True)]
    write_manifest(cohort, records)
    train(write_config(tmp_path / "atlas.yaml"), cohort, tmp_path / "atlas")
    local = make_brighter_cohort(tmp_path / "local", range(300, 312), by=0.04)

    table = adaptation_table(tmp_path / "atlas", cohort, local, lesion_shapes_folder, 1).set_index("scans")

    flagged = {name: int(str(cell).split(" of ")[0]) for name, cell in table["FPR at 10%"].items()}
    assert flagged["own scanner"] <= 4
    assert flagged["other scanner"] == 12
    assert flagged["adapted"] < 6
    assert table.loc["adapted", "dark, AP"] > table.loc["other scanner", "dark, AP"]
