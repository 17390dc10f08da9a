"""What a file is, by its ending and by its first bytes."""

from __future__ import annotations

import pytest

from anomaly.io.file_types import (
    DICOM_ENDINGS,
    FIRST_OF_PAIR,
    OTHER_ENDINGS,
    READ_ENDINGS,
    UNREAD_ENDINGS,
    describe_content,
    ending_of,
    image_stem,
)


@pytest.mark.parametrize(
    ("name", "ending", "stem"),
    [
        ("sub-01_T1w.Nii.Gz", ".nii.gz", "sub-01_T1w"),
        ("a.b.NII", ".nii", "a.b"),
        ("brain.mgz", ".mgz", "brain"),
        ("scan.nii.bz2", ".nii.bz2", "scan"),
        ("scan.TAR.gz", ".tar.gz", "scan"),
        ("motion.tsv.gz", ".gz", "motion.tsv.gz"),
        ("image.dcm", ".dcm", "image.dcm"),
        ("IM0001", "", "IM0001"),
    ],
)
def test_the_longest_ending_counts_in_any_case(name: str, ending: str, stem: str) -> None:
    assert (ending_of(name), image_stem(name)) == (ending, stem)


def test_an_ending_means_one_thing() -> None:
    tables = [READ_ENDINGS, UNREAD_ENDINGS, DICOM_ENDINGS, OTHER_ENDINGS]
    endings = [ending for table in tables for ending in table]
    assert len(endings) == len(set(endings))
    assert all(ending == ending.lower() and ending.startswith(".") for ending in endings)


def test_both_files_of_a_pair_are_known() -> None:
    known = {*READ_ENDINGS, *UNREAD_ENDINGS}
    assert {*FIRST_OF_PAIR, *(first for firsts in FIRST_OF_PAIR.values() for first in firsts)} <= known


@pytest.mark.parametrize(
    ("start", "description"),
    [
        (b"", "an empty file"),
        (bytes(200), "zero bytes only"),
        (b"\x89HDF\r\n", "an HDF5"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        (b'{"message": "Not Found"}', "an XML or JSON text"),
        (b"/annex/objects/MD5-s1--00\n", "a git-annex pointer"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"plain words", "a text"),
    ],
)
def test_content_is_named(start: bytes, description: str) -> None:
    content = describe_content(start)
    assert content is not None
    assert content.description.startswith(description)
    assert content.remedy


def test_bytes_that_tell_nothing_are_not_named() -> None:
    assert describe_content(b"\x01\x02\x03\xff" * 100) is None
