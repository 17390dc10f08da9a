"""Grouping DICOM files into scans, their modality, and pseudonyms."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality
from anomaly.io.dicom_series import group_series, read_header
from anomaly.io.discover import discover
from anomaly.io.stored_file import StoredFile
from tests.io.dicom_factory import AXIAL, encode, make_series, make_slice, uid, write_series


def refusal(folder: Path) -> ScanRefusedError:
    (scan,) = discover([folder])
    assert scan.refusal is not None
    return scan.refusal


def test_a_header_contains_nothing_that_identifies_the_patient() -> None:
    header = read_header(StoredFile(Path("x.dcm")), encode(make_series(1)[0]))
    assert header is not None
    (series,) = group_series([header])
    written = f"{series.scan_id} {series.subject} {series.session}"
    assert not any(word in written for word in ("Doe", "4711", "1970"))
    assert (header.age, header.sex) == (45.0, "F")


def test_a_file_that_is_not_dicom_has_no_header() -> None:
    for content in (b"", b"text", b"\0" * 400, b"\0" * 128 + b"DICM"):
        assert read_header(StoredFile(Path("x")), content) is None


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
