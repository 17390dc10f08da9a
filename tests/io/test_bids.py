"""BIDS file names and participants."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.errors import InputError
from anomaly.core.volume import Modality
from anomaly.io.bids import (
    MAX_ID_LENGTH,
    Participant,
    is_scan_name,
    parse_scan_name,
    read_participants,
    safe_file_name,
)


@pytest.mark.parametrize(
    ("path", "scan_id", "subject", "session", "modality"),
    [
        ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01_ses-2_T1w", "sub-01", "ses-2", Modality.T1W),
        ("sub-01/anat/sub-01_acq-3D_FLAIR.nii", "sub-01_acq-3D_FLAIR", "sub-01", "", Modality.FLAIR),
        ("sub-01_ct.nii.gz", "sub-01_ct", "sub-01", "", Modality.CT),
        ("BraTS-0001-t1n.nii.gz", "BraTS-0001-t1n", "BraTS-0001-t1n", "", Modality.T1W),
        ("patient7/T2.nii.gz", "patient7_T2", "patient7", "", Modality.T2W),
        ("sub-9/brain.nii.gz", "brain", "sub-9", "", Modality.UNKNOWN),
        ("a scan (1).nii.gz", "a-scan-1", "a-scan-1", "", Modality.UNKNOWN),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_name_gives_subject_session_and_modality(
    path: str, scan_id: str, subject: str, session: str, modality: Modality
) -> None:
    name = parse_scan_name(Path("data") / path)
    assert (name.scan_id, name.subject, name.session, name.modality) == (scan_id, subject, session, modality)


@pytest.mark.parametrize(
    "name",
    ["sub-1_desc-brain_mask", "sub-1_label-lesion_mask", "sub-1_dseg", "sub-1_label-GM_probseg", "BraTS-1-seg",
     "lesion-000_space-MNI_mask", "x_label-lesion_roi", "mask"],
)  # fmt: skip
def test_masks_and_label_maps_are_not_scans(name: str) -> None:
    assert not is_scan_name(f"{name}.nii.gz")


@pytest.mark.parametrize("name", ["sub-masked_T1w", "sub-1_desc-preproc_T1w", "roiboy", "sub-1_T1w", "label7"])
def test_names_of_scans_are_recognised(name: str) -> None:
    assert is_scan_name(f"{name}.nii.gz")


def test_the_name_of_another_kind_of_image_is_recognised() -> None:
    assert parse_scan_name(Path("sub-1_task-rest_bold.nii.gz")).kind.other == "a BOLD image"
    assert parse_scan_name(Path("sub-1_T1w.nii.gz")).kind.other == ""


def test_a_folder_that_only_begins_like_a_subject_names_nobody() -> None:
    name = parse_scan_name(Path("sub-cortical/a_T1.nii.gz"))
    assert (name.subject, name.is_subject_named) == ("a_T1", False)


def test_unsafe_characters_of_names_are_replaced() -> None:
    assert safe_file_name("../../etc/pass wd") == "etc-pass-wd"
    assert safe_file_name("???") == "scan"


@pytest.mark.parametrize(
    ("one", "other"), [("张伟", "李娜"), ("Müller", "Möller"), ("Иван", "Пётр"), ("Müller", "Muller")]
)
def test_names_that_differ_in_letters_have_different_ids(one: str, other: str) -> None:
    ids = safe_file_name(one), safe_file_name(other)
    assert ids[0] != ids[1]
    assert all(name.isascii() for name in ids)


def test_a_name_has_one_id_however_its_accents_are_encoded() -> None:
    assert safe_file_name("M\u00fcller") == safe_file_name("Mu\u0308ller")
    assert parse_scan_name(Path("sub-M\u00fcller_T1w.nii")).subject == parse_scan_name(
        Path("sub-Mu\u0308ller_T1w.nii")
    ).subject  # fmt: skip


def test_bids_labels_keep_letters_apart() -> None:
    subjects = {parse_scan_name(Path(f"sub-{label}_T1w.nii.gz")).subject for label in ("Müller", "Möller", "M")}
    assert len(subjects) == 3


def test_a_name_that_is_no_text_has_an_id() -> None:
    assert safe_file_name("caf\udce9") != safe_file_name("caf\udce8")


def test_a_long_name_is_shortened_and_stays_different() -> None:
    ids = {safe_file_name("x" * 200 + end) for end in ("a", "b")}
    assert len(ids) == 2
    assert all(len(name) == MAX_ID_LENGTH for name in ids)
    assert safe_file_name("x" * MAX_ID_LENGTH) == "x" * MAX_ID_LENGTH


def participants(folder: Path, content: bytes) -> dict[str, Participant]:
    (folder / "sub-01").mkdir(exist_ok=True)
    (folder / "participants.tsv").write_bytes(content)
    return read_participants(folder / "sub-01" / "sub-01_T1w.nii.gz", {})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_participants_are_read_in_usual_encodings(tmp_path: Path, encoding: str) -> None:
    text = "participant_id\tage\tsex\tgroup\tsite\nsub-01\t63,5\tF\tcontrol\tZürich\n"
    assert participants(tmp_path, text.encode(encoding)) == {"sub-01": Participant(63.5, "F", "healthy")}


def test_an_age_that_is_no_number_is_unknown_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = participants(tmp_path, b"participant_id\tage\nsub-01\tinf\nsub-02\tNaN\nsub-03\t44\n")
    assert [person.age for person in found.values()] == [None, None, 44.0]
    assert "age 'inf': taken as unknown" in caplog.text


def test_participants_without_the_prefix_are_found(tmp_path: Path) -> None:
    assert participants(tmp_path, b"participant_id\tage\n01\t44\n")["sub-01"].age == 44


def test_a_table_of_participants_without_their_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found the columns subject, age; expected participant_id"):
        participants(tmp_path, b"subject\tage\nsub-01\t44\n")


def test_two_rows_of_a_participant_that_differ_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: sub-01 has two rows that differ"):
        participants(tmp_path, b"participant_id\tgroup\nsub-01\thealthy\nsub-01\tpatient\n")
