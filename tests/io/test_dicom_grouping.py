"""Grouping DICOM files into scans, their modality, and pseudonyms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import MediaStorageDirectoryStorage

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality
from anomaly.io.dicom_grouping import group_series
from anomaly.io.dicom_header import read_header
from anomaly.io.discover import ScanSource, discover
from anomaly.io.stored_file import StoredFile
from tests.io.dicom_factory import (
    AXIAL,
    encode,
    make_series,
    make_slice,
    uid,
    with_raw_value,
    without_meta,
    write_series,
    write_zip,
)


def refusal(folder: Path) -> ScanRefusedError:
    (scan,) = discover([folder])
    assert scan.refusal is not None
    return scan.refusal


def warnings_of(scan: ScanSource) -> list[str]:
    return [warning.found for warning in scan.read().warnings]


def test_a_header_contains_nothing_that_identifies_the_patient() -> None:
    header = read_header(StoredFile(Path("x.dcm")), encode(make_series(1)[0]))
    assert header is not None
    (series,) = group_series([header])
    written = f"{series.scan_id} {series.subject} {series.session}"
    assert not any(word in written for word in ("Doe", "4711", "1970"))
    assert (header.age, header.sex) == (45.0, "F")


def test_the_same_image_exported_twice_counts_once(tmp_path: Path) -> None:
    (scan,) = discover([write_series(tmp_path / "twice", make_series(6) + make_series(6))])
    assert len(scan.files) == 6


def test_two_echoes_in_one_series_are_two_scans(tmp_path: Path) -> None:
    first, second = make_series(EchoTime=12.0), make_series(EchoTime=90.0, seed=1)
    for index, ds in enumerate(second):
        ds.SOPInstanceUID = uid("second", index)
    scans = discover([write_series(tmp_path / "series", first + second)])
    assert [len(scan.files) for scan in scans] == [6, 6]
    assert len({scan.scan_id for scan in scans}) == 2


def test_two_series_in_one_folder_are_two_scans(tmp_path: Path) -> None:
    both = make_series(series="one") + make_series(series="two", seed=1)
    assert len(discover([write_series(tmp_path / "both", both)])) == 2


def test_a_localizer_of_three_planes_is_refused(tmp_path: Path) -> None:
    planes = (AXIAL, (1.0, 0, 0, 0, 0, -1.0), (0, 1.0, 0, 0, 0, -1.0))
    series = [ds for n, p in enumerate(planes) for ds in make_series(3, orientation=p, series="loc")]
    for index, ds in enumerate(series):
        ds.SOPInstanceUID = uid("loc", index)
    assert refusal(write_series(tmp_path / "series", series)).code == "localizer"


def test_a_scout_inside_a_ct_series_is_refused_and_the_scan_is_read(tmp_path: Path) -> None:
    series = make_series(n_slices=20, modality="CT")
    scout = make_slice(99, (0, 0, 0), np.zeros((40, 30), np.uint16), "CT", orientation=(1, 0, 0, 0, 0, -1),
                       ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])  # fmt: skip
    scan, refused = discover([write_series(tmp_path / "series", [*series, scout])])
    assert scan.read().voxels.shape[2] == 20
    assert refused.refusal is not None
    assert refused.refusal.code == "localizer"


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [("1.2.840.10008.5.1.4.1.1.88.11", "SR"), ("1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
     ("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"), ("1.2.840.10008.5.1.4.1.1.7", "OT")],
    ids=["structured report", "PDF", "contours", "screenshot"],
)  # fmt: skip
def test_a_series_that_is_not_a_scan_is_refused(tmp_path: Path, sop_class: str, modality: str) -> None:
    ds = make_series(1)[0]
    ds.SOPClassUID, ds.Modality = sop_class, modality
    if modality != "OT":
        del ds.PixelData, ds.Rows, ds.Columns
    assert refusal(write_series(tmp_path / "object", [ds])).code == "non_image"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"SeriesDescription": "Sag T1 MPRAGE"}, Modality.T1W),
        ({"SeriesDescription": "AX T2 FLAIR"}, Modality.FLAIR),
        ({"SeriesDescription": "ax t2 tse"}, Modality.T2W),
        ({"SeriesDescription": "t2*_swi"}, Modality.UNKNOWN),
        ({"SeriesDescription": "ep2d_diff_b1000"}, Modality.UNKNOWN),
        (
            {"SeriesDescription": "ax", "EchoTime": 100, "RepetitionTime": 9000, "InversionTime": 2500},
            Modality.FLAIR,
        ),
        ({"SeriesDescription": "ax", "EchoTime": 100, "RepetitionTime": 5000}, Modality.T2W),
        ({"SeriesDescription": "ax", "EchoTime": 3, "RepetitionTime": 8}, Modality.T1W),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else value.value,
)
def test_the_header_gives_the_mr_contrast(tmp_path: Path, values: dict, expected: Modality) -> None:
    (scan,) = discover([write_series(tmp_path / "series", make_series(**values))])
    assert scan.modality is expected


def test_no_output_identifies_the_patient(tmp_path: Path) -> None:
    folder = tmp_path / "exports" / "DOE_JANE"
    write_series(folder, make_series())
    (scan,) = discover([tmp_path / "exports"])
    written = f"{scan.scan_id} {scan.subject} {scan.session} {scan.origin.name}#{scan.fragment}".lower()
    assert not any(word in written for word in ("doe", "jane", "4711", "1970"))
    assert scan.scan_id.startswith("sub-")
    assert scan.scan_id.endswith("_T1w")


def test_the_pseudonym_of_a_patient_is_the_same_for_all_series(tmp_path: Path) -> None:
    both = make_series(series="one") + make_series(series="two", seed=1)
    first, second = discover([write_series(tmp_path / "both", both)])
    assert first.subject == second.subject
    assert first.scan_id != second.scan_id


def test_a_pseudonym_depends_on_the_key_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "scan", make_series())
    (first,), (again,) = discover([folder]), discover([folder])
    monkeypatch.setenv("ANOMALY_SITE_KEY_FILE", str(tmp_path / "other.key"))
    (other,) = discover([folder])
    assert first.scan_id == again.scan_id
    assert not set(first.scan_id.split("_")[:3]) & set(other.scan_id.split("_")[:3])
    unkeyed = hashlib.sha256(b"anomaly/patient/4711").hexdigest()
    assert unkeyed[:8] not in first.scan_id + other.scan_id


def test_series_without_patient_id_of_two_studies_are_two_subjects(tmp_path: Path) -> None:
    one = make_series(series="one", PatientID="")
    two = make_series(series="two", PatientID="", StudyInstanceUID=uid("another study"))
    first, second = discover([write_series(tmp_path / "both", one + two)])
    assert first.subject != second.subject


@pytest.mark.real_data
def test_the_real_t1_series_is_recognised(anomaly_data: Path) -> None:
    (scan,) = discover([anomaly_data / "dicom" / "mr_t1_384slices.zip"])
    assert scan.modality is Modality.T1W
    assert len(scan.files) == 384


def test_a_series_without_identifiers_is_one_scan(tmp_path: Path) -> None:
    series = make_series(6)
    for ds in series:
        for keyword in (
            "SOPInstanceUID",
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "FrameOfReferenceUID",
            "PatientID",
        ):
            setattr(ds, keyword, "")
        ds.file_meta.MediaStorageSOPInstanceUID = uid(ds.InstanceNumber)
    (scan,) = discover([write_series(tmp_path / "series", series)])
    assert scan.read().voxels.shape[2] == 6


def files_of(series: list[FileDataset]) -> list[bytes]:
    return [encode(ds) for ds in series]


def cut_in_meta(content: bytes) -> bytes:
    return content[:141]


def cut_in_header(content: bytes) -> bytes:
    return content[:600]


def cut_before_pixels(content: bytes) -> bytes:
    return content[: content.index(b"\xe0\x7f\x10\x00")]


def empty(content: bytes) -> bytes:
    return b""


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


def other_content(content: bytes) -> bytes:
    return b"<html>404 not found</html>"


DAMAGES = [cut_in_meta, cut_in_header, cut_before_pixels, empty, zeros, other_content]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("container", "number"), [(".dcm", 0), ("", 3), ("", 5), ("zip", 5)])
def test_a_damaged_file_makes_its_series_incomplete(
    tmp_path: Path, damage: Callable[[bytes], bytes], container: str, number: int
) -> None:
    contents = files_of(make_series(6))
    contents[number] = damage(contents[number])
    if container == "zip":
        source = write_zip(tmp_path / "series.zip", contents)
    else:
        source = write_series(tmp_path / "series", contents, container)
    error = refusal(source)
    assert error.code == "unreadable"
    assert error.found.startswith(f"1 of 6 files damaged (file {number + 1} in the order of names: ")


def test_objects_without_images_beside_a_series_are_no_other_series_for_a_damaged_file(tmp_path: Path) -> None:
    report = make_series(1, series="report", Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")[0]
    del report.PixelData, report.Rows, report.Columns
    contents = [*files_of(make_series(6)), encode(report)]
    contents[2] = cut_in_meta(contents[2])
    refused = [s.refusal.code for s in discover([write_series(tmp_path / "series", contents)]) if s.refusal]
    assert sorted(refused) == ["non_image", "unreadable"]


def test_a_damaged_file_beside_several_series_is_refused_on_its_own_and_marks_them(tmp_path: Path) -> None:
    both = files_of(make_series(6, series="one") + make_series(6, series="two", seed=1))
    damaged = cut_in_meta(both[0])
    first, second, broken = discover([write_series(tmp_path / "both", [*both, damaged])])
    for scan in (first, second):
        assert warnings_of(scan) == ["a damaged file in its folder"]
    assert broken.refusal is not None
    assert broken.refusal.code == "unreadable"
    assert "DOE" not in broken.scan_id


def test_damaged_files_of_one_folder_are_one_row(tmp_path: Path) -> None:
    contents = [cut_before_pixels(content) for content in files_of(make_series(6))]
    error = refusal(write_series(tmp_path / "series", [*contents, b""]))
    assert error.code == "unreadable"
    assert error.found.startswith("7 of 7 files damaged (file 1 in the order of names: cut before its pixels; ")


def test_a_damaged_file_elsewhere_does_not_concern_a_series(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "good", make_series(6))
    write_series(tmp_path / "in" / "bad", [cut_in_meta(encode(make_series(1, series="bad")[0]))])
    good, broken = discover([tmp_path / "in"])
    assert warnings_of(good) == []
    assert broken.refusal is not None


def test_a_damaged_copy_of_a_readable_image_does_no_harm(tmp_path: Path) -> None:
    contents = files_of(make_series(6))
    (scan,) = discover([write_series(tmp_path / "series", [*contents, cut_before_pixels(contents[2])])])
    assert scan.read().voxels.shape[2] == 6


def test_an_empty_file_named_by_a_uid_belongs_to_its_series(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for ds in make_series(6):
        (folder / f"MR.{ds.SOPInstanceUID}").write_bytes(encode(ds))
    (folder / "MR.1.2.840").touch()
    assert refusal(folder).found.startswith("1 of 7 files damaged")


def test_a_link_that_leads_nowhere_is_missing_from_the_series_only_if_it_is_named_like_its_files(
    tmp_path: Path,
) -> None:
    folder = write_series(tmp_path / "series", make_series(6), "")
    (folder / "latest").symlink_to(tmp_path / "nowhere")
    scan, link = discover([folder])
    assert scan.refusal is None
    assert link.refusal is not None
    assert link.refusal.found == "a link to a file that does not exist"
    (folder / "IM0042_6").symlink_to(tmp_path / "nowhere")
    incomplete, _ = discover([folder])
    assert incomplete.refusal is not None
    assert "(file 7 in the order of names: a link to a file that does not exist)" in incomplete.refusal.found


def test_other_files_beside_a_series_do_no_harm(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", make_series(6), "")
    for name in ("README", "VERSION", "notes.txt", "index.html", "LOCK"):
        (folder / name).write_bytes(b"text")
    (scan,) = discover([folder])
    assert warnings_of(scan) == []


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize(
    ("keyword", "raw"),
    [("RepetitionTime", b"2000,0"), ("EchoTime", b"3,0 "), ("PatientAge", b"old "), ("InstanceNumber", b"1/6 "),
     ("NumberOfFrames", b"one ")],
)  # fmt: skip
def test_a_side_value_that_cannot_be_parsed_drops_no_slice(
    tmp_path: Path, number: int, keyword: str, raw: bytes
) -> None:
    series = make_series(6)
    expected = np.stack([ds.pixel_array.T for ds in series], axis=2)
    contents = files_of(series)
    contents[number] = with_raw_value(series[number], keyword, raw)
    (scan,) = discover([write_series(tmp_path / "series", contents, "")])
    np.testing.assert_array_equal(scan.read().voxels, expected)
    assert scan.modality is Modality.T1W


@pytest.mark.parametrize(
    ("keyword", "code"),
    [("ImagePositionPatient", "missing_geometry"), ("ImageOrientationPatient", "missing_geometry"),
     ("PixelSpacing", "missing_geometry"), ("RescaleSlope", "bad_rescale")],
)  # fmt: skip
def test_a_needed_value_that_cannot_be_parsed_refuses_the_series(tmp_path: Path, keyword: str, code: str) -> None:
    contents = files_of(make_series(6))
    contents[5] = with_raw_value(make_series(6)[5], keyword, b"1,0\\x ")
    (scan,) = discover([write_series(tmp_path / "series", contents)])
    with pytest.raises(ScanRefusedError) as caught:
        scan.read()
    assert caught.value.code == code


@pytest.mark.parametrize("kept", [slice(0, 18), slice(2, 20)], ids=["end", "start"])
def test_a_series_with_fewer_slices_than_its_headers_count_is_refused(tmp_path: Path, kept: slice) -> None:
    series = make_series(20, shape=(4, 4), ImagesInAcquisition=20)
    error = refusal(write_series(tmp_path / "series", series[kept]))
    assert error.code == "missing_slices"
    assert error.found == "18 images where the header counts 20 in the acquisition: 2 missing"


def test_a_warning_about_a_series_is_part_of_the_volume(tmp_path: Path) -> None:
    (scan,) = discover([write_series(tmp_path / "series", make_series(20, shape=(4, 4))[1:])])
    assert warnings_of(scan) == ["instance numbers from 2 instead of 1"]


def test_an_echo_with_fewer_slices_than_the_other_is_refused(tmp_path: Path) -> None:
    first, second = make_series(EchoTime=12.0), make_series(EchoTime=90.0, seed=1)
    for index, ds in enumerate(second):
        ds.SOPInstanceUID, ds.InstanceNumber = uid("second", index), 7 + index
    scans = discover([write_series(tmp_path / "series", first + second[:5])])
    assert [len(s.files) for s in scans] == [6, 5]
    assert scans[0].refusal is None
    assert scans[1].refusal is not None
    assert scans[1].refusal.found == "5 slices where another volume of the series has 6"


@pytest.mark.parametrize("value", [0.995, 0.985, 0.015])
def test_direction_cosines_that_alternate_around_a_rounding_boundary_are_one_scan(
    tmp_path: Path, value: float
) -> None:
    series = []
    for k, pixels in enumerate(np.random.default_rng(0).integers(0, 99, (8, 6, 6), dtype=np.uint16)):
        angle = np.arccos(value + 5e-7 * (-1) ** k)
        orientation = (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)
        series.append(make_slice(k, (0.005 + 1e-6 * (-1) ** k, 0, 3.0 * k), pixels, orientation=orientation))
    (scan,) = discover([write_series(tmp_path / "series", series)])
    assert scan.read().voxels.shape == (6, 6, 8)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("Rows", 4), ("ImageOrientationPatient", [1, 0, 0, 0, 0, -1])],
    ids=["size", "orientation"],
)
def test_a_slice_of_another_size_or_orientation_is_not_split_off(
    tmp_path: Path, keyword: str, value: object
) -> None:
    series = make_series(20, shape=(8, 8))
    setattr(series[19], keyword, value)
    error = refusal(write_series(tmp_path / "series", series))
    assert error.code == "mixed_planes"
    assert error.found.startswith("1 of 20 images")


def test_a_slice_under_another_series_uid_is_not_split_off(tmp_path: Path) -> None:
    series = make_series(20, shape=(4, 4))
    series[19].SeriesInstanceUID = uid("changed")
    scans = discover([write_series(tmp_path / "series", series)])
    assert [s.refusal is not None and s.refusal.code for s in scans if len(s.files) == 19] == ["missing_slices"]


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_two_patients_or_studies_with_one_series_uid_are_refused(tmp_path: Path, keyword: str) -> None:
    other = make_series(6, start=(-10.0, -20.0, 23.0), seed=1, **{keyword: uid("another")})
    for index, ds in enumerate(other):
        ds.SOPInstanceUID = uid("other", index)
    error = refusal(write_series(tmp_path / "series", make_series(6) + other))
    assert error.code == "mixed_patients"
    assert uid("another") not in str(error)


def test_different_images_with_one_sop_instance_uid_are_refused(tmp_path: Path) -> None:
    error = refusal(write_series(tmp_path / "series", make_series(6, SOPInstanceUID=uid("all"))))
    assert error.code == "equal_uids"
    assert error.found == "6 different images with the same SOPInstanceUID"


@pytest.mark.parametrize("split", ["folders", "zips", "sources", "zip and folder"])
def test_a_series_in_several_places_is_one_scan(tmp_path: Path, split: str) -> None:
    series = make_series(12, shape=(4, 4), ImagesInAcquisition=12)
    root = tmp_path / "in"
    root.mkdir()
    halves = (series[:7], series[7:])
    if split == "folders":
        sources = [write_series(root / "a", halves[0]), write_series(root / "b", halves[1])]
    elif split == "zips":
        sources = [write_zip(root / "a.zip", halves[0]), write_zip(root / "b.zip", halves[1])]
    else:
        sources = [write_zip(root / "a.zip", halves[0]), write_series(root / "b", halves[1])]
    (scan,) = discover(sources if split == "sources" else [root])
    np.testing.assert_array_equal(scan.read().voxels, np.stack([d.pixel_array.T for d in series], axis=2))
    assert len(discover([sources[0], root, sources[1]])) == 1


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("container", ["", ".dcm", "zip"])
def test_files_without_preamble_are_scans(tmp_path: Path, container: str, explicit: bool) -> None:
    series = make_series(6)
    contents = [without_meta(ds, explicit) for ds in series]
    if container == "zip":
        source = write_zip(tmp_path / "series.zip", contents)
    else:
        source = write_series(tmp_path / "series", contents, container)
    (scan,) = discover([source])
    np.testing.assert_array_equal(scan.read().voxels, np.stack([d.pixel_array.T for d in series], axis=2))


@pytest.mark.parametrize("has_image_type", [True, False])
def test_a_mosaic_is_called_a_mosaic(tmp_path: Path, has_image_type: bool) -> None:
    series = make_series(2)
    for ds in series:
        if has_image_type:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        else:
            ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 36)
    error = refusal(write_series(tmp_path / "series", series))
    assert error.code == "mosaic"
    assert "dcm2niix" in error.remedy


def test_a_dicomdir_is_an_index_beside_images_and_refused_alone(tmp_path: Path) -> None:
    ds = make_series(1)[0]
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MediaStorageDirectoryStorage
    for keyword in ("Modality", "SeriesInstanceUID", "Rows", "Columns", "PixelData"):
        delattr(ds, keyword)
    folder = write_series(tmp_path / "series", make_series(6))
    (folder / "DICOMDIR").write_bytes(encode(ds))
    (scan,) = discover([folder])
    assert scan.read().voxels.shape[2] == 6
    error = refusal(folder / "DICOMDIR")
    assert error.code == "dicomdir"
    assert "folder" in error.remedy


def test_no_message_of_a_refusal_identifies_the_patient(tmp_path: Path) -> None:
    written = []
    for number, damage in enumerate(DAMAGES):
        contents = files_of(make_series(6, PatientID="DOE-4711"))
        contents[2] = damage(contents[2])
        error = refusal(write_series(tmp_path / f"DOE_JANE_{number}", contents, "_DOE"))
        written.append(str(error))
    assert not any(word in text for text in written for word in ("DOE", "Doe", "JANE", "Jane", "4711"))
