from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly.cohort.planted_lesions import MR_LESION_KINDS
from anomaly.core.errors import CohortError, InputError
from anomaly.core.progress import no_progress
from anomaly.export.nifti import write_nifti
from pipelines.benchmark.planted_lesions import (
    PlantedSettings,
    choose_lesion,
    label_row,
    plant_test_scans,
    write_labels,
)
from tests.pipelines.cohorts import GRID, healthy, make_cohort, write_sources


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


def test_every_kind_of_mr_is_planted_by_default(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(1), split="test")
    write_sources(cohort)
    manifest = plant_test_scans(PlantedSettings(), None, cohort, tmp_path / "out", no_progress)
    assert len(pd.read_csv(manifest)) == len(MR_LESION_KINDS)
    labels = pd.read_csv(tmp_path / "out" / "labels-tumour.tsv", sep="\t", keep_default_na=False)
    assert labels["label"].tolist() == [0, 1]
    lesion = nib.load(tmp_path / "out" / labels["mask"][1])
    assert np.asarray(lesion.dataobj).any()


def test_a_haemorrhage_in_mr_is_refused(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(1), split="test")
    write_sources(cohort)
    settings = PlantedSettings(kinds=("haemorrhage",))
    with pytest.raises(InputError, match="cannot be planted in T1w"):
        plant_test_scans(settings, None, cohort, tmp_path / "out", no_progress)


def test_lesions_in_a_scan_that_is_not_extracted_stay_in_its_brain(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "cohort", range(1), split="test")
    source = write_sources(cohort)[0]
    voxels, _ = healthy(0)
    write_nifti(source, np.where(voxels > 0, voxels, 0.3), GRID)
    plant_test_scans(PlantedSettings(kinds=("dark",)), None, cohort, tmp_path / "out", no_progress)
    planted, mask = sorted((tmp_path / "out" / "raw").rglob("*.nii.gz"), key=lambda path: len(path.name))
    assert np.asarray(nib.load(mask).dataobj).any()
    np.testing.assert_allclose(np.asarray(nib.load(planted).dataobj)[voxels == 0], 0.3, rtol=1e-6)


def test_kinds_with_a_shape_of_their_own_do_not_take_a_given_one() -> None:
    _, brain = healthy(0)
    shape = np.zeros(GRID.shape, dtype=bool)
    shape[6:9, 8:11, 6:9] = True
    rng = np.random.default_rng(0)
    given = choose_lesion("dark", brain, [shape], GRID, PlantedSettings(), rng)
    assert given.sum() == shape.sum()
    drawn = choose_lesion("multifocal", brain, [shape], GRID, PlantedSettings(), rng)
    assert (drawn != shape).any()
