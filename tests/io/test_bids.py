"""BIDS file names and participants."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.core.volume import Modality
from anomaly.io.bids import (
    is_scan_name,
    is_unsupported_image,
    parse_age,
    parse_scan_name,
    parse_sex,
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
def test_scans_are_scans(name: str) -> None:
    assert is_scan_name(f"{name}.nii.gz")


def test_unsupported_kinds_of_image_are_recognised() -> None:
    assert is_unsupported_image(parse_scan_name(Path("sub-1_task-rest_bold.nii.gz")))
    assert not is_unsupported_image(parse_scan_name(Path("sub-1_T1w.nii.gz")))


def test_ages_and_sexes_are_parsed_in_their_usual_spellings() -> None:
    assert [parse_age(text) for text in ("34.5", "89+", "n/a", "")] == [34.5, 89.0, None, None]
    assert [parse_sex(text) for text in ("F", "male", "n/a", "O")] == ["F", "M", "", "O"]


def test_unsafe_characters_of_names_are_replaced() -> None:
    assert safe_file_name("../../etc/pass wd") == "etc-pass-wd"
    assert safe_file_name("???") == "scan"
