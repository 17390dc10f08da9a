"""Whose scan a file is, by the names of files and folders."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from anomaly.io.subjects import names_nobody, tell_subjects_apart


def subjects(*paths: str) -> list[str]:
    return [found.subject for found in tell_subjects_apart([PurePosixPath("/data", path) for path in paths])]


def scan_ids(*paths: str) -> list[str]:
    return [found.scan_id for found in tell_subjects_apart([PurePosixPath("/data", path) for path in paths])]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["subj01/anat/T1.nii.gz", "subj02/anat/T1.nii.gz"], ["subj01", "subj02"]),
        (["patient7/T1.nii", "patient7/T2.nii", "patient8/T1.nii"], ["patient7", "patient7", "patient8"]),
        (["A/mprage_brain.nii", "B/mprage_brain.nii"], ["A", "B"]),
        (["P1/2019-01-01/scan.nii", "P2/2019-01-01/scan.nii"], ["P1", "P2"]),
        (["P1/2019-01-01/scan.nii", "P1/2020-02-02/scan.nii"], ["P1", "P1"]),
        (["P1/visit1/T1.nii", "P1/visit2/T1.nii", "P2/visit1/T1.nii"], ["P1", "P1", "P2"]),
        (["P1/serA/T1.nii", "P1/serB/T2.nii", "P2/serC/T1.nii", "P2/T2.nii"], ["P1", "P1", "P2", "P2"]),
        (["train/P1/T1.nii", "test/P2/T1.nii"], ["P1", "P2"]),
        (["s1/P1/T1.nii", "s1/P2/T1.nii", "s2/P3/T1.nii"], ["P1", "P2", "P3"]),
        (["s1/P1/T1.nii", "s1/P2/T1.nii", "s2/P1/T1.nii"], ["s1_P1", "P2", "s2_P1"]),
        (["P1/001_T1.nii", "P2/001_T1.nii"], ["P1_001_T1", "P2_001_T1"]),
        (["001_T1.nii", "002_T1.nii"], ["001_T1", "002_T1"]),
        (["a/Smith_T1.nii", "b/Smith_T1.nii"], ["Smith_T1", "Smith_T1"]),
        (["a_T1.nii", "b_T1.nii"], ["a_T1", "b_T1"]),
        (["MT/T1.nii", "PD/T1.nii"], ["MT", "PD"]),
        (["subj01/anat/T1.nii"], ["subj01"]),
        ([], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_files_named_alike_belong_to_the_first_folder_that_differs(paths: list[str], expected: list[str]) -> None:
    assert subjects(*paths) == expected


def test_folders_in_another_script_are_told_apart() -> None:
    found = subjects("张伟/T1.nii", "李娜/T1.nii", "李娜/T2.nii")
    assert found[0] != found[1] == found[2]
    assert len(set(scan_ids("张伟/T1.nii", "李娜/T1.nii"))) == 2


def test_ids_begin_with_the_folder_that_names_somebody() -> None:
    assert scan_ids("subj01/anat/T1.nii.gz", "subj02/anat/T1.nii.gz") == ["subj01_T1", "subj02_T1"]
    assert scan_ids("patient7/T1.nii.gz") == ["patient7_T1"]
    assert scan_ids("a/scan7.nii.gz", "b/scan7.nii.gz") == ["scan7", "scan7"]
    assert scan_ids("a/Smith_T1.nii.gz") == ["Smith_T1"]


@pytest.mark.parametrize(
    "folder", ["anat", "T1", "2019-01-01", "20190101", "visit2", "ses-01", "baseline", "brain"]
)
def test_folders_named_after_an_image_a_date_or_a_visit(folder: str) -> None:
    assert names_nobody(folder)


@pytest.mark.parametrize("folder", ["P1", "subj01", "V001", "0001", "19991399", "Smith", "scan1", "PD"])
def test_folders_that_may_name_somebody(folder: str) -> None:
    assert not names_nobody(folder)
