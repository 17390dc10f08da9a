"""Reading the manifest of scans that a user writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.errors import InputError
from anomaly.core.volume import Modality
from anomaly.io.manifest import read_manifest


def write(folder: Path, text: str, name: str = "manifest.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_only_the_path_is_required(tmp_path: Path) -> None:
    (row,) = read_manifest(write(tmp_path, "path\na.nii.gz\n"))
    assert row.path == tmp_path / "a.nii.gz"
    assert row.modality is Modality.UNKNOWN
    assert row.age is None


def test_every_column_is_read(tmp_path: Path) -> None:
    header = "path,subject,session,modality,group,split,mask,age,sex\n"
    (row,) = read_manifest(write(tmp_path, header + "a.nii,s1,2,t1w,healthy,train,m/a.nii,34.5,female\n"))
    assert (row.subject, row.session, row.modality) == ("s1", "2", Modality.T1W)
    assert (row.group, row.split, row.mask) == ("healthy", "train", tmp_path / "m" / "a.nii")
    assert (row.age, row.sex) == (34.5, "F")


def test_a_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    (row,) = read_manifest(write(tmp_path, "path\tgroup\na.nii\thealthy\n", "manifest.tsv"))
    assert row.group == "healthy"


def test_an_unknown_column_is_an_error_that_lists_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown column 'diagnosis'; valid: age, group, mask, modality, path"):
        read_manifest(write(tmp_path, "path,diagnosis\na.nii,MS\n"))


def test_a_manifest_without_paths_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'path'"):
        read_manifest(write(tmp_path, "subject\ns1\n"))


def test_an_unknown_modality_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3: unknown modality 'PET'; valid: CT, FLAIR, T1ce, T1w, T2w"):
        read_manifest(write(tmp_path, "path,modality\na.nii,T1w\nb.nii,PET\n"))


def test_an_empty_path_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: the path is empty"):
        read_manifest(write(tmp_path, "path,group\n,healthy\n"))


def test_a_value_too_many_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: more values than columns"):
        read_manifest(write(tmp_path, "path,group\na.nii,healthy,extra\n"))


def test_words_for_missing_values_are_not_taken_literally(tmp_path: Path) -> None:
    header = "path,subject,session,modality,group,split,mask,age,sex\n"
    (row,) = read_manifest(write(tmp_path, header + "a.nii,n/a,NA,n/a,null,-,n/a,NaN,?\n"))
    assert (row.subject, row.session, row.modality, row.group, row.split) == ("", "", Modality.UNKNOWN, "", "")
    assert (row.mask, row.age, row.sex) == (None, None, "")


def test_groups_and_splits_have_one_spelling(tmp_path: Path) -> None:
    (row,) = read_manifest(write(tmp_path, "path,group,split\na.nii,Control,Training\n"))
    assert (row.group, row.split) == ("healthy", "train")


def test_an_unknown_split_is_named_with_the_known_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_manifest(write(tmp_path, "path,split\na.nii,tarin\n"))
    assert "split 'tarin': kept as written; known splits: train, validation, calibration, test" in caplog.text


def test_a_table_with_semicolons_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (row,) = read_manifest(write(tmp_path, "path;age\na.nii;63,5\n"))
    assert row.age == 63.5
    assert "columns are separated by ';', expected ','" in caplog.text


def test_post_contrast_t1w_can_be_declared(tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path, "path,modality\na.nii,T1ce\nb.nii,T1\n"))
    assert [row.modality for row in rows] == [Modality.T1W_CE, Modality.T1W]
