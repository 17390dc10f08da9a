"""Headers of DICOM files: recognising them, values that cannot be parsed, and files that are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.io.dicom_header import Header, is_dicom, read_header
from anomaly.io.stored_file import StoredFile
from tests.io.dicom_factory import encode, make_series, uid, with_raw_value, without_meta, without_preamble


def header_of(content: bytes, name: str = "0001") -> Header:
    return read_header(StoredFile(Path("folder", name)), content)


def test_the_header_of_an_image_has_no_fault() -> None:
    header = header_of(encode(make_series(1)[0]))
    assert header.fault == ""
    assert (header.series, header.size, header.position) == (uid("series"), (8, 10), (-10.0, -20.0, 5.0))
    assert (header.instance, header.echo_time, header.repetition_time) == (1, 3.0, 2000.0)
    assert (header.age, header.sex) == (45.0, "F")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\0" * 400, b"\x08\0" * 300], ids=["empty", "text", "zeros", "8"]
)
def test_content_that_is_not_dicom_is_called_so_unless_the_ending_is_that_of_dicom(content: bytes) -> None:
    assert not header_of(content).is_dicom
    named = header_of(content, "0001.dcm")
    assert named.is_dicom
    assert named.fault == ("not DICOM" if content else "empty")


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
def test_files_without_preamble_are_recognised(explicit: bool) -> None:
    ds = make_series(1)[0]
    whole = header_of(encode(ds))
    for content in (without_meta(ds, explicit=explicit), without_preamble(ds)):
        assert is_dicom(content[:132])
        assert header_of(content) == whole


def test_a_damaged_magic_does_not_hide_a_file() -> None:
    content = bytearray(encode(make_series(1)[0]))
    content[130] ^= 0x20
    header = header_of(bytes(content))
    assert header.is_dicom
    assert header.fault != ""


@pytest.mark.slow
def test_a_file_that_is_cut_before_its_pixels_has_a_fault_wherever_it_is_cut() -> None:
    content = encode(make_series(1)[0])
    n_header = content.index(b"\xe0\x7f\x10\x00")
    for length in range(136, n_header):
        header = header_of(content[:length])
        assert header.is_dicom
        assert header.fault != "", length


def test_a_header_that_continues_with_zeros_has_a_fault() -> None:
    content = encode(make_series(1)[0])
    n_header = content.index(b"\xe0\x7f\x10\x00")
    for length in range(140, n_header, 7):
        assert header_of(content[:length] + bytes(len(content) - length)).fault != "", length


@pytest.mark.parametrize(
    ("keyword", "raw"),
    [("RepetitionTime", b"2000,0"), ("EchoTime", b"three "), ("InversionTime", b"n/a "),
     ("InstanceNumber", b"1/20"), ("NumberOfFrames", b"one "), ("PatientAge", b"forty "),
     ("PatientSex", b"\xff\xfe"), ("SeriesNumber", b"3a"),
     ("SpecificCharacterSet", b"ISO_IR 1O0"), ("SliceThickness", b"thin"), ("ImagesInAcquisition", b"all "),
     ("NumberOfSlices", b"\x01"), ("SeriesDescription", b"\xe4\xf6"), ("ImageType", b"\xff\\\xff ")],
)  # fmt: skip
def test_a_side_value_that_cannot_be_parsed_makes_no_other_value_unreadable(keyword: str, raw: bytes) -> None:
    header = header_of(with_raw_value(make_series(1)[0], keyword, raw))
    assert header.fault == ""
    assert (header.series, header.size, header.position) == (uid("series"), (8, 10), (-10.0, -20.0, 5.0))
    assert header.n_frames == 1


@pytest.mark.parametrize("raw", [b"0\\0\\five", b"0\\0\\nan ", b"0\\0 ", b"0,0\\0\\0 ", b""])
def test_a_position_that_is_not_three_numbers_is_missing(raw: bytes) -> None:
    header = header_of(with_raw_value(make_series(1)[0], "ImagePositionPatient", raw))
    assert not header.has_plane


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("045Y", 45.0),
        ("018M", 1.5),
        ("052W", 1.0),
        ("42", None),
        ("-45Y", None),
        ("NaN", None),
        ("045Y\\046Y", None),
    ],
)
def test_ages_without_unit_or_number_are_unknown(text: str, years: float | None) -> None:
    assert header_of(with_raw_value(make_series(1)[0], "PatientAge", text.encode())).age == years


@pytest.mark.parametrize(("text", "sex"), [("M", "M"), ("f ", "F"), ("O", "O"), ("female", "F"), ("?", "")])
def test_a_sex_that_is_none_of_those_of_dicom_is_unknown(text: str, sex: str) -> None:
    assert header_of(with_raw_value(make_series(1)[0], "PatientSex", text.encode())).sex == sex


def test_counts_are_read_from_standard_and_vendor_elements() -> None:
    ds = make_series(1, ImagesInAcquisition=40, NumberOfSlices=20)[0]
    counts = header_of(encode(ds)).counts
    assert (counts.slices, counts.acquisition, counts.series) == (20, 40, None)
    vendor = make_series(1)[0]
    vendor.private_block(0x0021, "GEMS_RELA_01", create=True).add_new(0x4F, "SS", 30)
    vendor.private_block(0x0025, "GEMS_SERS_01", create=True).add_new(0x07, "SL", 60)
    counts = header_of(encode(vendor)).counts
    assert (counts.slices, counts.series) == (30, 60)


def test_a_gap_between_slices_is_not_taken_for_the_distance_of_their_centres() -> None:
    assert header_of(encode(make_series(1, SpacingBetweenSlices=3.3)[0])).slice_step == 3.3
    assert header_of(encode(make_series(1, SpacingBetweenSlices=0.3)[0])).slice_step is None
