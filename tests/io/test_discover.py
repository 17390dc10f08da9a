"""Finding scans: which files are scans, which are not, and how scans are named."""

from __future__ import annotations

import os
import socket
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anomaly.core.errors import InputError, ScanRefusedError
from anomaly.core.volume import Modality
from anomaly.export.nifti import write_nifti
from anomaly.io.discover import ScanSource, discover
from tests.conftest import make_volume
from tests.io.dicom_factory import make_series, uid, write_series, write_zip
from tests.io.image_factory import rotated, voxels, write_by_itk


def put(path: Path, seed: int = 0) -> Path:
    volume = make_volume(seed=seed)
    write_nifti(path, volume.voxels, volume.geometry)
    return path


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    root = tmp_path / "bids"
    put(root / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz")
    put(root / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_FLAIR.nii.gz")
    put(root / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_label-lesion_mask.nii.gz")
    put(root / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    put(root / "sub-02" / "anat" / "sub-02_desc-brain_mask.nii.gz")
    put(root / "sub-02" / "anat" / "sub-02_dseg.nii.gz")
    put(root / "derivatives" / "tool" / "sub-02" / "sub-02_T1w.nii.gz")
    (root / "dataset_description.json").write_text("{}")
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\tgroup\tother\nsub-01\t61.5\tF\tpatient\tx\nsub-02\tn/a\tmale\tn/a\ty\n"
    )
    return root


def ids(scans: list[ScanSource]) -> list[str]:
    return [scan.scan_id for scan in scans]


def test_bids_names_give_subject_session_and_modality(bids: Path) -> None:
    scans = {scan.scan_id: scan for scan in discover([bids])}
    assert sorted(scans) == ["sub-01_ses-a_FLAIR", "sub-01_ses-a_T1w", "sub-02_T1w"]
    scan = scans["sub-01_ses-a_FLAIR"]
    assert (scan.subject, scan.session, scan.modality) == ("sub-01", "ses-a", Modality.FLAIR)


def test_participants_tsv_gives_age_sex_and_group(bids: Path) -> None:
    scans = {scan.scan_id: scan for scan in discover([bids])}
    first, second = scans["sub-01_ses-a_T1w"], scans["sub-02_T1w"]
    assert (first.age, first.sex, first.group) == (61.5, "F", "patient")
    assert (second.age, second.sex, second.group) == (None, "M", "")


def test_participants_tsv_is_read_for_a_single_file_too(bids: Path) -> None:
    (scan,) = discover([bids / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz"])
    assert scan.age == 61.5


def test_a_lesion_mask_in_the_same_folder_belongs_to_the_scan(bids: Path) -> None:
    scans = {scan.scan_id: scan for scan in discover([bids])}
    mask = scans["sub-01_ses-a_T1w"].lesion_mask
    assert mask is not None
    assert mask.name == "sub-01_ses-a_label-lesion_mask.nii.gz"
    assert scans["sub-02_T1w"].lesion_mask is None


def test_a_mask_that_the_user_names_is_refused_not_skipped(bids: Path) -> None:
    (scan,) = discover([bids / "sub-02" / "anat" / "sub-02_desc-brain_mask.nii.gz"])
    assert scan.refusal is not None
    assert scan.refusal.code == "not_a_scan"


def test_unsupported_images_are_refused_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "sub-01_task-rest_bold.nii.gz").write_bytes(b"never read")
    (scan,) = discover([tmp_path])
    with pytest.raises(ScanRefusedError) as caught:
        scan.read()
    assert caught.value.code == "wrong_modality"


def test_the_folder_is_the_subject_of_a_file_named_after_its_modality(tmp_path: Path) -> None:
    put(tmp_path / "patient7" / "T1.nii.gz")
    put(tmp_path / "patient8" / "T1.nii.gz")
    scans = discover([tmp_path])
    assert ids(scans) == ["patient7_T1", "patient8_T1"]
    assert [scan.subject for scan in scans] == ["patient7", "patient8"]
    assert {scan.modality for scan in scans} == {Modality.T1W}


def test_the_default_modality_applies_only_to_files_of_unknown_modality(tmp_path: Path, bids: Path) -> None:
    put(tmp_path / "plain" / "a.nii.gz")
    scans = {s.scan_id: s.modality for s in discover([tmp_path / "plain", bids], Modality.T2W)}
    assert scans["a"] is Modality.T2W
    assert scans["sub-02_T1w"] is Modality.T1W


def test_the_same_file_named_twice_is_one_scan(bids: Path) -> None:
    assert len(discover([bids, bids / "sub-02", bids])) == 3


@pytest.mark.parametrize("order", [1, -1], ids=["manifest first", "folder first"])
def test_a_manifest_takes_precedence_over_a_folder(bids: Path, order: int) -> None:
    manifest = bids.parent / "manifest.csv"
    manifest.write_text("path,group,split\nbids/sub-02/anat/sub-02_T1w.nii.gz,healthy,test\n")
    scans = {scan.scan_id: scan for scan in discover([manifest, bids][::order])}
    assert len(scans) == 3
    assert scans["sub-02_T1w"].split == "test"


def test_equal_names_from_different_folders_get_different_ids(tmp_path: Path) -> None:
    put(tmp_path / "a" / "scan7.nii.gz", seed=1)
    put(tmp_path / "b" / "scan7.nii.gz", seed=2)
    assert ids(discover([tmp_path])) == ["scan7", "scan7_2"]


def test_a_manifest_adds_metadata(tmp_path: Path, bids: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "path,subject,group,split,mask,age\n"
        "bids/sub-02/anat/sub-02_T1w.nii.gz,someone,healthy,test,bids/sub-02/anat/sub-02_dseg.nii.gz,\n"
    )
    (scan,) = discover([manifest])
    assert (scan.subject, scan.group, scan.split) == ("someone", "healthy", "test")
    assert scan.sex == "M"
    assert scan.lesion_mask is not None


def test_a_manifest_may_name_a_folder_of_dicom(tmp_path: Path) -> None:
    write_series(tmp_path / "series", make_series())
    (tmp_path / "manifest.csv").write_text("path,subject,group\nseries,sub-9,healthy\n")
    (scan,) = discover([tmp_path / "manifest.csv"])
    assert (scan.subject, scan.group, scan.is_dicom) == ("sub-9", "healthy", True)


def test_a_missing_file_of_a_manifest_is_refused_without_stopping_the_others(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz")
    (tmp_path / "manifest.csv").write_text("path\na.nii.gz\ngone.nii.gz\n")
    scan, missing = discover([tmp_path / "manifest.csv"])
    assert scan.read().voxels.shape == (12, 14, 10)
    assert missing.refusal is not None
    assert missing.refusal.code == "missing_file"


def test_different_kinds_of_source_can_be_mixed(tmp_path: Path, bids: Path) -> None:
    write_series(tmp_path / "dicom", make_series(series="folder"))
    write_zip(tmp_path / "scan.zip", make_series(series="zip", seed=3))
    scans = discover([bids, tmp_path / "dicom", tmp_path / "scan.zip"])
    assert [scan.is_dicom for scan in scans] == [False, False, False, True, True]


def test_a_zip_may_hold_nifti(tmp_path: Path) -> None:
    path = put(tmp_path / "sub-05_T1w.nii.gz")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(path, "study/sub-05_T1w.nii.gz")
        archive.write(path, "study/sub-05_desc-brain_mask.nii.gz")
    path.unlink()
    (scan,) = discover([tmp_path])
    assert (scan.scan_id, scan.origin.name, scan.fragment) == (
        "sub-05_T1w", "scans.zip", "study/sub-05_T1w.nii.gz",
    )  # fmt: skip
    np.testing.assert_array_equal(scan.read().voxels, make_volume().voxels)


def test_the_name_of_a_zip_found_in_a_folder_is_not_written_down(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    write_zip(tmp_path / "inbox" / "doe_jane.zip", make_series())
    (scan,) = discover([tmp_path / "inbox"])
    assert scan.origin == tmp_path / "inbox"
    (named,) = discover([tmp_path / "inbox" / "doe_jane.zip"])
    assert named.origin.name == "doe_jane.zip", "a path that the user typed may be written down"


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "store" / "a.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "in")
    assert ids(discover([tmp_path / "in"])) == ["a"]


def test_files_of_other_types_are_skipped(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz")
    for name in ("notes.txt", "DICOMDIR", "a.json", ".hidden.nii.gz", "binary"):
        (tmp_path / name).write_bytes(b"\0" * 200)
    assert ids(discover([tmp_path])) == ["a"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("scan.PAR", "a Philips PAR/REC image"),
        ("scan.rec", "a Philips PAR/REC image"),
        ("pet.v", "an ECAT image"),
        ("brain.MNC", "a MINC image"),
        ("brain+orig.HEAD", "an AFNI image"),
        ("scan.nii.bz2", "a NIfTI file under another compression than gzip"),
        ("scan.nii.zst", "a NIfTI file under another compression than gzip"),
        ("scan.nii.gz.part", "an unfinished download or copy"),
        ("study.tar.gz", "a tar archive"),
        ("study.TGZ", "a tar archive"),
        ("study.7z", "a 7z archive"),
        ("study.rar", "a RAR archive"),
        ("IM1.dcm.gz", "a compressed DICOM file"),
    ],
)
@pytest.mark.parametrize("place", ["folder", "zip", "named"])
def test_a_file_that_may_hold_a_scan_and_is_not_read_is_refused_by_name(
    tmp_path: Path, name: str, found: str, place: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / name).write_bytes(b"content")
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(source / name, name)
    (scan,) = discover([{"folder": source, "zip": tmp_path / "a.zip", "named": source / name}[place]])
    assert scan.refusal is not None
    assert (scan.refusal.code, scan.refusal.found) == ("unsupported_format", found)
    assert scan.cache_key()


@pytest.mark.parametrize("place", ["folder", "zip", "named"])
@pytest.mark.parametrize(
    "ending",
    [".dcm.gz", ".dcm.bz2", ".ima.gz", ".IMA.GZ", ".dicom.xz",
     ".dcm.part", ".dcm.crdownload", ".zip.part", ".zip.crdownload",
     ".tar.gz", ".rar", ".zip", ".dcm"],
)  # fmt: skip
def test_the_name_of_a_file_that_may_name_the_patient_is_not_written_down(
    tmp_path: Path, ending: str, place: str
) -> None:
    file = tmp_path / "in" / "DOE^JANE_19700101" / f"DOE_JANE{ending}"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"content")
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(file, f"DOE^JANE/{file.name}")
    source = {"folder": tmp_path / "in", "zip": tmp_path / "a.zip", "named": file}[place]
    written = [(scan.scan_id, scan.subject, scan.session, scan.fragment) for scan in discover([source])]
    assert "DOE" not in str(written)
    assert all(scan.origin == source for scan in discover([source]))


@pytest.mark.parametrize("name", ["DOE_JANE.dcm", "DOE_JANE.zip", "DOE_JANE"])
def test_the_name_of_a_missing_file_that_may_name_the_patient_is_no_id(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.csv").write_text(f"path\n{name}\n")
    (scan,) = discover([tmp_path / "manifest.csv"])
    assert (scan.scan_id, scan.subject, scan.origin) == ("unreadable", "unreadable", tmp_path / name)


def test_a_pair_is_one_scan(tmp_path: Path) -> None:
    volume = make_volume()
    nib.Nifti1Pair(volume.voxels, volume.geometry.affine).to_filename(tmp_path / "sub-1_T1w.img")
    for name in ("b.par", "b.rec", "c+orig.HEAD", "c+orig.BRIK.gz"):
        (tmp_path / name).write_bytes(b"content")
    first, *others = sorted(discover([tmp_path]), key=lambda scan: scan.refusal is not None)
    assert [file.name for file in first.files] == ["sub-1_T1w.img", "sub-1_T1w.hdr"]
    assert first.read().geometry.same_as(volume.geometry)
    assert sorted(ids(others)) == ["b", "c+orig"]
    assert ids(discover([tmp_path / "sub-1_T1w.hdr", tmp_path])) == ["sub-1_T1w", "b", "c+orig"]


def test_a_header_and_its_data_file_are_one_scan(tmp_path: Path) -> None:
    write_by_itk(tmp_path / "scan.mhd", voxels(), rotated())
    (scan,) = discover([tmp_path])
    assert [file.name for file in scan.files] == ["scan.mhd", "scan.raw"]
    before = scan.cache_key()
    (tmp_path / "scan.raw").write_bytes(b"1" * 1009)
    assert scan.cache_key() != before


def test_label_maps_of_freesurfer_are_no_scans(tmp_path: Path) -> None:
    for name in ("T1.mgz", "aseg.mgz", "wm.mgz"):
        nib.MGHImage(voxels(), rotated()).to_filename(tmp_path / name)
    (scan,) = discover([tmp_path])
    assert scan.read().voxels.shape == (9, 8, 7)
    (label_map,) = discover([tmp_path / "aseg.mgz"])
    assert _refusal_code(label_map) == "not_a_scan"


def test_pipes_sockets_and_devices_are_named_and_never_opened(tmp_path: Path) -> None:
    for name in ("scan.nii.gz", "IM1", "IM2", "a.zip", "participants.tsv"):
        os.mkfifo(tmp_path / name)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "agent"))
        scans = discover([tmp_path])
    found = sorted(_found(scan) for scan in scans)
    assert found == ["2 files, each of them a named pipe", "a named pipe", "a named pipe", "a socket"]
    assert _found(discover([Path("/dev/null")])[0]) == "a device"


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "loop_T1w.nii").symlink_to("loop_T1w.nii")
    (tmp_path / "sub-1_T1w.nii.gz").symlink_to("../.git/annex/objects/Kp/8P/SHA256E-s1--ab.nii.gz")
    for number in range(3):
        (tmp_path / f"IM{number}").symlink_to("../.git/annex/objects/Kp/8P/SHA256E-s1--ab")
    assert {scan.scan_id: _found(scan) for scan in discover([tmp_path])} == {
        "loop_T1w": "a link that leads back to itself",
        "sub-1_T1w": "a git-annex link whose content is not here",
        f"{tmp_path.name}_unreadable": "3 files, each of them a git-annex link whose content is not here",
    }
    assert _found(discover([tmp_path / "sub-1_T1w.nii.gz"])[0]) == "a git-annex link whose content is not here"


def test_participants_of_a_linked_file_are_those_of_its_link(bids: Path) -> None:
    scan = bids / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz"
    store = bids / ".git" / "annex" / "objects" / "content.nii.gz"
    store.parent.mkdir(parents=True)
    scan.rename(store)
    scan.symlink_to(store)
    (linked,) = discover([scan])
    assert (linked.age, linked.read().voxels.shape) == (61.5, (12, 14, 10))


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"M\xfcller_T1w.nii", "M\\udcfcller_T1w.nii"), (b"new\nline_T1w.nii", "new\\x0aline_T1w.nii")],
    ids=["bytes", "line break"],
)
def test_a_file_with_an_unusual_name_is_read_and_its_name_shown_as_text(
    tmp_path: Path, name: bytes, shown: str
) -> None:
    put(tmp_path / "a.nii").rename(tmp_path / os.fsdecode(name))
    (scan,) = discover([tmp_path])
    assert scan.origin.name == shown
    assert scan.scan_id.encode().isascii()
    assert scan.read().voxels.shape == (12, 14, 10)
    assert scan.cache_key()


def test_a_path_that_no_file_can_have_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(f"path\n{'x' * 300}_T1w.nii\n")
    (scan,) = discover([tmp_path / "manifest.csv"])
    assert scan.refusal is not None
    assert scan.refusal.code == "missing_file"
    assert scan.cache_key()


def test_a_name_of_255_bytes_is_found(tmp_path: Path) -> None:
    put(tmp_path / "a.nii").rename(tmp_path / ("x" * 251 + ".nii"))
    (scan,) = discover([tmp_path])
    assert scan.read().voxels.shape == (12, 14, 10)


def test_a_file_that_vanishes_while_it_is_looked_at_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path, make_series())
    put(tmp_path / "b_T1w.nii")
    real = Path.open

    def vanishing(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.suffix == ".dcm":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", vanishing)
    scan, vanished = discover([tmp_path])
    assert scan.scan_id == "b_T1w"
    assert "it was there and is gone" in _found(vanished)


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def test_a_zipped_bids_data_set_has_the_scans_and_people_of_its_folder(tmp_path: Path, bids: Path) -> None:
    (bids / ".bidsignore").write_text("sub-02/\n")
    from_zip = discover([zipped(tmp_path / "bids.zip", bids)])
    from_folder = discover([bids])
    facts = [[(s.scan_id, s.subject, s.session, s.modality, s.age, s.sex, s.group) for s in scans]
             for scans in (from_zip, from_folder)]  # fmt: skip
    assert facts[0] == facts[1]
    assert ids(from_zip) == ["sub-01_ses-a_FLAIR", "sub-01_ses-a_T1w"]
    assert from_zip[0].age == 61.5


def test_a_zip_that_holds_none_is_refused_for_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.nii.gz")
    inner = zipped(tmp_path / "inner.zip", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    encrypted = bytearray(inner.read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    (tmp_path / "cut.zip").write_bytes(inner.read_bytes()[:-30])
    (tmp_path / "page.zip").write_bytes(b"<!DOCTYPE html>")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    found = {name: _found(discover([tmp_path / f"{name}.zip"])[0]) for name in (
        "nested", "encrypted", "cut", "page", "empty",
    )}  # fmt: skip
    assert found == {
        "nested": "a zip inside a zip",
        "encrypted": "an encrypted file in a zip",
        "cut": "a damaged or incomplete zip",
        "page": "an HTML page, such as the error page of a download",
        "empty": "a zip without a scan",
    }


def _found(scan: ScanSource) -> str:
    with pytest.raises(ScanRefusedError) as caught:
        scan.read()
    return caught.value.found


def test_a_broken_dicom_file_is_refused_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 200)
    (scan,) = discover([tmp_path])
    assert scan.refusal is not None
    assert scan.refusal.code == "unreadable"


def test_output_folders_of_this_program_are_skipped(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz")
    put(tmp_path / "cohort" / "volumes" / "a.nii")
    (tmp_path / "cohort" / "cohort.json").write_text("{}")
    assert ids(discover([tmp_path])) == ["a"]


def test_a_source_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no source at"):
        discover([tmp_path / "nowhere"])


def test_a_source_without_scans_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scan found"):
        discover([tmp_path])


def test_the_cache_key_changes_when_a_file_is_replaced(tmp_path: Path) -> None:
    path = put(tmp_path / "a.nii.gz")
    (before,) = discover([path])
    key = before.cache_key()
    assert key == before.cache_key()
    put(path, seed=5)
    assert before.cache_key() != key


def test_the_faulty_scans_of_the_sample_data_are_refused_for_their_faults(sample_data: Path) -> None:
    assert {_fault(scan): _refusal_code(scan) for scan in discover([sample_data / "refuse"])} == {
        "truncated": "unreadable",
        "four_dimensional": "not_3d",
        "constant": "constant",
        "not_a_number": "non_finite",
        "zero_affine": "absurd_geometry",
        "absurd_spacing": "absurd_geometry",
        "tiny_field_of_view": "",  # reads well; the quality checks refuse it
        "missing_slice": "missing_slices",
        "no_image": "non_image",
    }


def _fault(scan: ScanSource) -> str:
    return scan.files[0].path.parent.name if scan.is_dicom else scan.scan_id.removesuffix("_T1w")


def _refusal_code(scan: ScanSource) -> str:
    try:
        scan.read()
    except ScanRefusedError as error:
        return error.code
    return ""


def test_the_dicom_twins_of_the_sample_data_lie_where_the_nifti_files_lie(sample_data: Path) -> None:
    for modality, subject, suffix in (("mr", "sub-47", "T1w"), ("ct", "sub-62", None)):
        (dicom,) = discover([sample_data / "dicom" / modality])
        nifti = next(s for s in discover([sample_data / modality / subject]) if suffix in {None, s.modality.value})
        ours, twin = dicom.read(), nifti.read()
        corner = ours.geometry.to_index(twin.geometry.to_world([3, 4, 5]))
        i, j, k = np.rint(corner).astype(int)
        np.testing.assert_allclose(corner, [i, j, k], atol=1e-2)
        assert ours.voxels[i, j, k] == pytest.approx(twin.voxels[3, 4, 5], abs=1e-3)
        assert ours.voxels.sum() == pytest.approx(twin.voxels.sum(), rel=1e-5)


@pytest.mark.real_data
def test_every_real_brain_is_found_with_its_metadata(anomaly_data: Path) -> None:
    scans = discover([anomaly_data / "ixi"])
    assert len(scans) == 153
    assert {scan.modality for scan in scans} == {Modality.T1W}
    assert {scan.group for scan in scans} == {"healthy"}
    assert sum(scan.sex in {"M", "F"} and scan.age is not None for scan in scans) > 140


@pytest.mark.real_data
def test_real_lesion_masks_are_not_scans(anomaly_data: Path) -> None:
    scans = discover([anomaly_data / "pathology"])
    assert len(scans) == 4
    assert sum(scan.lesion_mask is not None for scan in scans) == 3


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"SeriesDescription": "ep2d_diff_3scan_trace_p2_ADC"}, "an ADC map by its header"),
        ({"SeriesDescription": "T1 MAP"}, "a T1 map by its header"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "a phase image by its header"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MIP"]}, "an intensity projection (MIP) by its header"),
    ],
    ids=str,
)
def test_a_series_of_another_kind_is_refused(tmp_path: Path, values: dict, found: str) -> None:
    (scan,) = discover([write_series(tmp_path / "series", make_series(**values))])
    with pytest.raises(ScanRefusedError) as caught:
        scan.read()
    assert (caught.value.code, caught.value.found) == ("wrong_modality", found)


def in_two_folders(folder: Path, series: list[Any]) -> list[Path]:
    half = len(series) // 2
    return [write_series(folder / "a", series[:half]), write_series(folder / "b", series[half:])]


def test_a_series_of_another_kind_in_two_sources_is_refused(tmp_path: Path) -> None:
    (scan,) = discover(in_two_folders(tmp_path, make_series(SeriesDescription="DWI b1000 trace")))
    assert len(scan.files) == 6
    assert scan.refusal is not None
    assert scan.refusal.code == "wrong_modality"


def test_notes_on_a_series_in_two_sources_travel_with_it(tmp_path: Path) -> None:
    (scan,) = discover(in_two_folders(tmp_path, make_series(SeriesDescription="Sag T1 FLAIR")))
    assert scan.modality is Modality.T1W
    assert scan.notes == discover([tmp_path])[0].notes != ()


@pytest.mark.parametrize("rows", ["a,T1w\nb,T1w\n", "a,T1w\nb,\n", "a,\nb,T1w\n"])
def test_a_manifest_overrides_the_kind_of_a_series_in_two_sources(tmp_path: Path, rows: str) -> None:
    in_two_folders(tmp_path, make_series(SeriesDescription="T1 MAP"))
    (tmp_path / "manifest.csv").write_text(f"path,modality\n{rows}")
    (scan,) = discover([tmp_path / "manifest.csv"])
    assert (scan.modality, scan.refusal, len(scan.files)) == (Modality.T1W, None, 6)
    assert scan.read().modality is Modality.T1W


def test_a_manifest_does_not_override_that_a_series_in_two_sources_is_no_scan(tmp_path: Path) -> None:
    series = make_series(8, SeriesDescription="T1 MAP")
    for ds in series[:4]:
        ds.PatientID = "another"
    in_two_folders(tmp_path, series)
    (tmp_path / "manifest.csv").write_text("path,modality\na,T1w\nb,T1w\n")
    (scan,) = discover([tmp_path / "manifest.csv"])
    assert scan.refusal is not None
    assert scan.refusal.code == "mixed_patients"


def test_a_volume_in_each_of_two_sources_is_judged_with_the_whole_series(tmp_path: Path) -> None:
    volumes = [make_series(6, seed=echo, EchoTime=10.0 * (echo + 1), NumberOfSeriesRelatedInstances=12,
                           ImageType=["ORIGINAL", "PRIMARY"]) for echo in range(2)]  # fmt: skip
    for ds in volumes[1]:
        ds.InstanceNumber += 6
        ds.SOPInstanceUID = uid("second echo", ds.SOPInstanceUID)
    scans = discover(in_two_folders(tmp_path, volumes[0] + volumes[1]))
    assert [(len(scan.files), scan.refusal) for scan in scans] == [(6, None), (6, None)]


def test_warnings_on_the_sources_of_a_series_travel_with_it_once(tmp_path: Path) -> None:
    series, other = make_series(8), make_series(3, SeriesInstanceUID="1.2.3", start=(0, 0, 900))
    folders = [
        write_series(tmp_path / name, [*part, *other, b"damaged"])
        for name, part in {"a": series[:4], "b": series[4:]}.items()
    ]
    joined = [scan for scan in discover(folders) if len(scan.files) > 3]
    assert [scan.series.warning for scan in joined if scan.series] == ["a damaged file in its folder"]


def test_a_scan_after_contrast_agent_is_a_modality_of_its_own(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom", make_series(ContrastBolusAgent="Gadovist"))
    put(tmp_path / "sub-01_ce-gd_T1w.nii.gz")
    assert [scan.modality for scan in discover([tmp_path])] == [Modality.T1W_CE, Modality.T1W_CE]


def test_notes_on_the_image_travel_with_the_scan(tmp_path: Path) -> None:
    series = make_series(SeriesDescription="Sag T1 FLAIR", ImageType=["DERIVED", "SECONDARY", "MPR"])
    (scan,) = discover([write_series(tmp_path / "series", series)])
    volume = scan.read()
    assert volume.modality is Modality.T1W
    assert tuple(warning.found for warning in volume.warnings) == scan.notes
    assert {(w.code, w.expected) for w in volume.warnings} == {("kind_of_image", "a plain T1w scan")}
    assert [note.split()[0:3] for note in scan.notes] == [
        ["a", "T1-weighted", "inversion"],
        ["a", "reformat", "of"],
    ]


def test_notes_on_an_image_of_unknown_modality_name_none(tmp_path: Path) -> None:
    series = make_series(SeriesDescription="head", ImageType=["DERIVED", "SECONDARY", "MPR"])
    (scan,) = discover([write_series(tmp_path / "series", series)])
    assert scan.modality is Modality.UNKNOWN
    assert [warning.expected for warning in scan.read().warnings] == ["a plain scan"]


def test_a_manifest_overrides_what_name_and_header_say(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom", make_series(SeriesDescription="T1 MAP"))
    put(tmp_path / "case_adc.nii.gz")
    (tmp_path / "manifest.csv").write_text("path,modality\ndicom,T1w\ncase_adc.nii.gz,T1w\n")
    scans = discover([tmp_path / "manifest.csv"])
    assert [scan.read().modality for scan in scans] == [Modality.T1W, Modality.T1W]


def test_subjects_are_told_apart_by_the_first_folder_that_differs(tmp_path: Path) -> None:
    for seed, subject in enumerate(("subj01", "subj02")):
        put(tmp_path / subject / "anat" / "T1.nii.gz", seed)
    scans = discover([tmp_path])
    assert [(scan.subject, scan.scan_id) for scan in scans] == [("subj01", "subj01_T1"), ("subj02", "subj02_T1")]


def test_subjects_are_told_apart_across_zips(tmp_path: Path) -> None:
    path = put(tmp_path / "T1.nii.gz")
    for name in ("P1", "P2"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.write(path, f"{name}/anat/T1.nii.gz")
    path.unlink()
    assert [scan.subject for scan in discover([tmp_path])] == ["P1", "P2"]


def test_a_manifest_names_the_subject_in_any_case(tmp_path: Path) -> None:
    put(tmp_path / "a" / "T1.nii.gz")
    (tmp_path / "manifest.csv").write_text("path,subject\na/T1.nii.gz,n/a\n")
    assert discover([tmp_path / "manifest.csv"])[0].subject == "a"
    (tmp_path / "manifest.csv").write_text("path,subject\na/T1.nii.gz,Jo\n")
    assert discover([tmp_path / "manifest.csv"])[0].subject == "Jo"


def test_a_long_name_gets_an_id_that_fits_into_file_names(tmp_path: Path) -> None:
    put(tmp_path / "short.nii.gz").rename(tmp_path / f"{'x' * 240}_T1w.nii.gz")
    (scan,) = discover([tmp_path])
    assert len(scan.scan_id) == 160
    assert scan.modality is Modality.T1W


def test_participants_without_scans_and_subjects_without_rows_are_named(
    bids: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(bids / "sub-03" / "anat" / "sub-03_T1w.nii.gz")
    table = bids / "participants.tsv"
    table.write_text(table.read_text() + "sub-04\t30\tF\thealthy\tz\n")
    discover([bids])
    assert "no scan was found for 1 of 4 subjects: sub-04" in caplog.text
    assert "there is no row for 1 of 4 subjects: sub-03" in caplog.text


def test_a_part_of_a_data_set_is_read_without_such_a_warning(bids: Path, caplog: pytest.LogCaptureFixture) -> None:
    discover([bids / "sub-02"])
    assert not caplog.records


def test_the_cache_key_changes_with_what_is_known_of_the_image(tmp_path: Path) -> None:
    plain = discover([put(tmp_path / "a_T1w.nii.gz")])[0]
    same = {"files": plain.files, "origin": plain.origin, "modality": plain.modality}
    assert ScanSource("a", **same).cache_key() == plain.cache_key()
    assert ScanSource("a", **same, notes=("a note",)).cache_key() != plain.cache_key()
    refused = ScanSource("a", **same, refusal=ScanRefusedError("wrong_modality", "x", "y", "z"))
    assert refused.cache_key() != plain.cache_key()


def test_the_cache_key_changes_with_a_damaged_file_beside_the_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path, make_series(6))
    write_series(folder / "other", make_series(3, SeriesInstanceUID="1.2.3"))
    for path in (folder / "other").iterdir():
        path.rename(folder / f"other_{path.name}")
    (plain, _) = discover([folder])
    (folder / "damaged.dcm").write_bytes(b"damaged")
    marked = next(scan for scan in discover([folder]) if scan.files == plain.files)
    assert marked.cache_key() != plain.cache_key()
    (folder / "damaged.dcm").unlink()
    assert discover([folder])[0].cache_key() == plain.cache_key()


def test_a_series_in_a_zip_of_which_a_file_cannot_be_opened_is_marked(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "export.zip", make_series(6))
    content = path.read_bytes()
    directory = content.rindex(b"export/IM0005")  # the name in the directory of the zip; that before the file stays
    path.write_bytes(content[:directory] + b"export'IM0005" + content[directory + 13 :])
    series, damaged = discover([path])
    assert [warning.found for warning in series.read().warnings] == ["a file in its zip that cannot be opened"]
    assert damaged.refusal is not None
