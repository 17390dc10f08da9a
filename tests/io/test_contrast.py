"""The kind of image that a name or a DICOM header gives: a contrast, another kind, or unknown."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pydicom import Dataset

from anomaly.core.volume import Modality
from anomaly.io import series_words as kinds
from anomaly.io.contrast import classify_header, classify_name, wrong_kind_refusal
from anomaly.io.series_words import ImageKind

TABLE = Path(__file__).with_name("series_descriptions.tsv")


def table(source: str) -> list[tuple[str, str]]:
    """Texts of public protocols and data sets, and the right answers."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["text"], row["expected"]) for row in rows if row["source"] == source]


def header(description: str = "", modality: str = "MR", **values: object) -> Dataset:
    ds = Dataset()
    ds.Modality, ds.SeriesDescription = modality, description
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def answer(found: ImageKind) -> str:
    return found.other or found.modality.value + ("+note" if found.notes else "")


@pytest.mark.parametrize(("text", "expected"), table("description"))
def test_a_series_description_tells_the_kind_of_image(text: str, expected: str) -> None:
    assert answer(classify_header(header(text))) == expected


@pytest.mark.parametrize(("text", "expected"), table("name"))
def test_a_file_name_tells_the_kind_of_image(text: str, expected: str) -> None:
    assert answer(classify_name(text)) == expected


@pytest.mark.parametrize(
    ("image_type", "expected"),
    [
        (["ORIGINAL", "PRIMARY", "M", "ND", "NORM"], "T1w"),
        (["DERIVED", "PRIMARY", "M", "NORM", "DIS3D"], "T1w"),
        (["DERIVED", "SECONDARY"], "T1w"),
        (["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], "T1w"),
        (["DERIVED", "SECONDARY", "MPR"], "T1w+note"),
        (["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], "T1w+note"),
        (["DERIVED", "PRIMARY", "MIP", "ND"], kinds.PROJECTION),
        (["DERIVED", "SECONDARY", "PROJECTION IMAGE"], kinds.PROJECTION),
        (["DERIVED", "PRIMARY", "M", "SUBTRACT"], kinds.SUBTRACTION),
        (["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], kinds.DIFFUSION),
        (["ORIGINAL", "PRIMARY", "P", "ND"], kinds.PHASE),
        (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"], kinds.PHASE),
        (["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"], kinds.REAL_OR_IMAGINARY),
        (["DERIVED", "PRIMARY", "T1_MAP"], kinds.T1_MAP),
        (["DERIVED", "SECONDARY", "SCREEN SAVE"], kinds.SCREEN_CAPTURE),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value,
)
def test_the_image_type_names_other_kinds_but_not_every_derived_image(image_type: list[str], expected: str) -> None:
    assert answer(classify_header(header("t1_mprage_sag", ImageType=image_type))) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"ContrastBolusAgent": "Gadovist"}, "T1ce"),
        ({"ContrastBolusAgent": ""}, "T1w"),
        ({"ContrastBolusAgent": "NONE"}, "T1w"),
        ({"ContrastBolusAgent": "n/a"}, "T1w"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "POST_CONTRAST", "NONE"]}, "T1ce"),
        ({"DiffusionBValue": 1000.0}, kinds.DIFFUSION),
        ({"DiffusionBValue": 0.0}, "T1w"),
        ({"ProtocolName": "BRAIN FLAIR DWI PERFUSION"}, "T1w"),
        ({"AcquisitionContrast": "T2"}, "T1w"),
    ],
    ids=str,
)
def test_the_header_adds_to_the_description(values: dict[str, object], expected: str) -> None:
    assert answer(classify_header(header("Sag T1 3D", **values))) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"ProtocolName": "t1_mprage"}, "T1w"),
        ({"AcquisitionContrast": "FLUID_ATTENUATED"}, "FLAIR"),
        ({"AcquisitionContrast": "T2_STAR"}, kinds.T2STAR),
        ({"SequenceName": "*tfl3d1_16ns"}, "T1w"),
        ({"SequenceName": "*swi3d1r", "ProtocolName": "t1"}, kinds.SWI),
        ({"SequenceName": "*ep_b1000t"}, kinds.DIFFUSION),
        ({"ScanningSequence": ["EP", "GR"]}, kinds.EPI),
        ({"ScanningSequence": "SE", "EchoTime": 12, "RepetitionTime": 3000}, kinds.PROTON_DENSITY),
        ({"ScanningSequence": "SE", "EchoTime": 12, "RepetitionTime": 500}, "T1w"),
        ({"ScanningSequence": "SE", "EchoTime": 100, "RepetitionTime": 5000}, "T2w"),
        (
            {"ScanningSequence": ["SE", "IR"], "EchoTime": 100, "RepetitionTime": 9000, "InversionTime": 2500},
            "FLAIR",
        ),
        ({"ScanningSequence": ["GR", "IR"], "EchoTime": 3, "RepetitionTime": 2000, "InversionTime": 900}, "T1w"),
        ({"ScanningSequence": "GR", "EchoTime": 20, "RepetitionTime": 650}, kinds.T2STAR),
        ({"ScanningSequence": "GR", "EchoTime": 5, "RepetitionTime": 25, "FlipAngle": 30}, "T1w"),
        ({"ScanningSequence": "GR", "EchoTime": 5, "RepetitionTime": 25, "FlipAngle": 5}, "unknown"),
        ({"ScanningSequence": "GR", "EchoTime": 3, "RepetitionTime": 8, "FlipAngle": 8}, "T1w"),
        ({"EchoTime": 50, "RepetitionTime": 5000}, "unknown"),
        ({}, "unknown"),
    ],
    ids=str,
)
def test_the_header_decides_where_the_description_says_nothing(values: dict[str, object], expected: str) -> None:
    assert answer(classify_header(header("ax", **values))) == expected


@pytest.mark.parametrize(
    ("description", "values", "expected"),
    [
        ("PD+T2 tse", {"EchoTime": 95}, "T2w"),
        ("PD+T2 tse", {"EchoTime": 15}, kinds.PROTON_DENSITY),
        ("flair spine", {"EchoTime": 23, "InversionTime": 785}, "T1w+note"),
        ("flair", {"EchoTime": 120, "InversionTime": 2500}, "FLAIR"),
        ("tirm cor", {"EchoTime": 60, "InversionTime": 150}, kinds.STIR),
    ],
)
def test_times_decide_between_two_kinds_of_one_name(
    description: str, values: dict[str, object], expected: str
) -> None:
    assert answer(classify_header(header(description, **values))) == expected


@pytest.mark.parametrize(
    ("description", "image_type", "expected"),
    [
        ("Head 5.0 H31s", ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"),
        ("Head MPR cor", ["DERIVED", "SECONDARY", "MPR"], "CT"),
        ("Head MIP", ["DERIVED", "SECONDARY", "AXIAL"], kinds.PROJECTION),
        ("Topogram", ["ORIGINAL", "PRIMARY", "LOCALIZER"], kinds.LOCALIZER),
        ("CBF", ["DERIVED", "SECONDARY"], kinds.PERFUSION),
        ("Patient T1 level", ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"),
    ],
)
def test_ct_is_ct_unless_it_is_derived(description: str, image_type: list[str], expected: str) -> None:
    assert answer(classify_header(header(description, "CT", ImageType=image_type))) == expected


def test_contrast_agent_in_other_scans_is_noted() -> None:
    for found in (
        classify_header(header("Head", "CT", ContrastBolusAgent="Ultravist")),
        classify_header(header("AX T2 FLAIR +C")),
        classify_name("sub-1_ce-gd_FLAIR"),
    ):
        assert [note for note in found.notes if "contrast agent" in note]


def test_an_object_that_is_neither_mr_nor_ct_has_no_kind() -> None:
    assert classify_header(header("T1", "SR")) == ImageKind()


@pytest.mark.parametrize("keyword", ["EchoTime", "InversionTime", "DiffusionBValue"])
@pytest.mark.parametrize("text", ["abc", "NaN", ""])
def test_a_number_that_cannot_be_read_counts_as_absent(keyword: str, text: str) -> None:
    ds = header("Sag T1")
    ds.add_new(keyword, "LO", text)
    assert answer(classify_header(ds)) == "T1w"


def test_another_kind_is_refused_and_an_unknown_one_is_not() -> None:
    refusal = wrong_kind_refusal(ImageKind(other=kinds.ADC), "header")
    assert refusal is not None
    assert (refusal.code, refusal.found) == ("wrong_modality", "an ADC map by its header")
    assert "manifest.csv" in refusal.remedy
    assert wrong_kind_refusal(ImageKind(), "header") is None
    assert wrong_kind_refusal(ImageKind(Modality.T1W), "name") is None
