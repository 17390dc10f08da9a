from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly.core.errors import InputError
from anomaly.evaluation.labels import Truth, match, read_labels


def write(folder: Path, text: str, name: str = "labels.tsv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def scores() -> pd.DataFrame:
    return pd.DataFrame(
        {"scan_id": ["a_1", "a_2", "b_1", "c_1"], "subject": ["a", "a", "b", None], "score": [1.0, 2.0, None, 4.0]}
    ).assign(age=np.nan, sex="")


def test_numbers_and_words_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "scan_id\tlabel\tmask\na\t0\t\nb\thealthy\t\nc\t1\tm/c.nii.gz\nd\tLesion\tn/a\n")
    labels = read_labels(path)
    assert labels.key == "scan_id"
    assert labels.truths == {
        "a": Truth(False),
        "b": Truth(False),
        "c": Truth(True, tmp_path / "m/c.nii.gz"),
        "d": Truth(True),
    }


def test_commas_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("subject,label\n001,1\n", encoding="utf-8-sig")
    assert read_labels(path).truths == {"001": Truth(True)}


def test_masks_are_found_by_name_in_their_folder(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "c_mask.nii.gz").touch()
    truths = read_labels(write(tmp_path, "scan_id\tlabel\nc\t1\nd\t1\ne\t0\n"), masks).truths
    assert truths == {"c": Truth(True, masks / "c_mask.nii.gz"), "d": Truth(True), "e": Truth(False)}


def test_mask_paths_are_relative_to_the_folder_of_masks(tmp_path: Path) -> None:
    path = write(tmp_path, "scan_id\tlabel\tmask\nc\t1\tc.nii\n")
    assert read_labels(path, tmp_path / "masks").truths["c"].mask == tmp_path / "masks" / "c.nii"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan_id\tlabel\na\tmaybe\n", r"line 2: unknown label 'maybe'; valid: 0, 1"),
        ("name\tlabel\na\t1\n", "expected scan_id"),
        ("scan_id\tgroup\na\t1\n", "expected scan_id"),
        ("scan_id\tlabel\n", "no rows"),
        ("", "cannot read"),
        ("subject\tlabel\na\t1\na\t0\n", "line 3: subject 'a' has two different rows"),
    ],
)
def test_a_table_without_valid_labels_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(write(tmp_path, text))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.tsv"):
        read_labels(tmp_path / "nowhere.tsv")


def test_a_subjects_label_holds_for_all_its_scans(tmp_path: Path) -> None:
    matched = match(scores(), read_labels(write(tmp_path, "subject\tlabel\na\t1\nb\t0\nz\t0\n")))
    assert matched.table["is_abnormal"].tolist() == [True, True, False]
    assert matched.unlabelled == ("c_1",)
    assert matched.unscored == ("b", "z")  # b was refused, z is not in the run


def test_a_scan_without_a_subject_is_its_own(tmp_path: Path) -> None:
    matched = match(scores(), read_labels(write(tmp_path, "scan_id\tlabel\na_1\t1\nc_1\t0\n")))
    assert matched.table["subject"].tolist() == ["a", "c_1"]


def test_age_and_sex_of_the_labels_fill_what_the_run_does_not_know(tmp_path: Path) -> None:
    run = scores().assign(age=[np.nan, 70, np.nan, np.nan], sex=["", "M", None, ""])
    text = "scan_id\tlabel\tage\tsex\na_1\t1\t045Y\tfemale\na_2\t1\t20\tF\nb_1\t0\t93,5\tn/a\nc_1\t0\tn/a\t?\n"
    matched = match(run, read_labels(write(tmp_path, text))).table

    assert matched["age"].tolist()[:3] == [45, 70, 90]
    assert np.isnan(matched["age"][3])
    assert matched["sex"].tolist() == ["F", "M", "", ""]


def test_visits_of_a_subject_at_different_ages_do_not_contradict_each_other(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path, "subject\tlabel\tage\na\t1\t60\na\t1\t64\n"))
    assert labels.truths["a"].age == 60


def test_labels_of_other_scans_are_refused_with_names_of_both(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run has a_1, a_2, b_1, …; the labels have x"):
        match(scores(), read_labels(write(tmp_path, "scan_id\tlabel\nx\t1\n")))
