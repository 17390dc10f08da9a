from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly.core.errors import CohortError
from anomaly.core.progress import no_progress
from pipelines.benchmark.planted_lesions import PlantedSettings, label_row, plant_test_scans, write_labels
from tests.pipelines.cohorts import make_cohort


@pytest.mark.slow
def test_more_copies_leave_the_first_ones_as_they_are(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, output = finished
    more = PlantedSettings(kinds=("dark",), per_subject=3, volume_ml=(20.0, 40.0))
    manifest = plant_test_scans(more, None, output / "cohort", tmp_path / "more", no_progress)
    assert len(pd.read_csv(manifest)) == 9
    old = {path.name: path for path in (output / "planted" / "raw").rglob("*.nii.gz")}
    new = {path.name: path for path in (tmp_path / "more" / "raw").rglob("*.nii.gz")}
    assert len(old) == 12
    assert len(new) == 18
    for name, path in old.items():
        assert np.array_equal(nib.load(path).get_fdata(), nib.load(new[name]).get_fdata())


def test_without_a_test_scan_nothing_can_be_planted(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(3), split="train")
    with pytest.raises(CohortError, match="no healthy test scan"):
        plant_test_scans(PlantedSettings(), None, cohort, tmp_path / "out", no_progress)


def test_labels_are_a_table_with_a_row_for_each_scan(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.tsv", [label_row("a", 0), label_row("b", 1, "raw/b.nii.gz")])
    table = pd.read_csv(tmp_path / "labels.tsv", sep="\t", keep_default_na=False)
    assert table.to_dict("list") == {"scan_id": ["a", "b"], "label": [0, 1], "mask": ["", "raw/b.nii.gz"]}
