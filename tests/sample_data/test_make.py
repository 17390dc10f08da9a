"""The sample data are what their manifest says, plausible, small, and made the same way each time."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from sample_data import make
from sample_data.recipe import cohort
from sample_data.recipe.anatomy import Anatomy
from sample_data.recipe.density import draw_calcifications
from sample_data.recipe.grid import BRAIN, HEAD, make_grid
from sample_data.recipe.scanner import Contrast, Patient, sample_slices, scan_ct, scan_mr
from sample_data.recipe.subjects import Person, draw_person, draw_warp

ROOT = Path(make.__file__).parent
MADE_TWICE = (1, 47, 55, 62, 68)
"""An MR scan, one that is also DICOM and one with a lesion; a CT scan that is also DICOM and one with a lesion."""

LESION_NUMBERS = (*cohort.MR_LESIONS, *cohort.CT_LESIONS)


def read_rows(name: str) -> list[dict[str, str]]:
    with (ROOT / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if name.endswith(".tsv") else ","))


def read_image(path: str) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(ROOT / path)
    return np.asanyarray(image.dataobj), image.affine


def read_series(path: str) -> list[pydicom.Dataset]:
    slices = [pydicom.dcmread(file) for file in sorted((ROOT / path).glob("*.dcm"))]
    return sorted(slices, key=lambda image: int(image.InstanceNumber))


MANIFEST = read_rows("manifest.csv")
T1W = [row for row in MANIFEST if row["modality"] == "T1w"]
CT = [row for row in MANIFEST if row["modality"] == "CT"]
MASKED = [row for row in MANIFEST if row["mask"]]


Heads = dict[float, Anatomy]


@pytest.fixture(scope="module")
def heads() -> Heads:
    return make.make_heads()


def member(number: int) -> cohort.Member:
    return next(each for each in cohort.members() if each.number == number)


def number_of(row: dict[str, str]) -> int:
    return int(row["subject"].removeprefix("sub-"))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folder_contains_exactly_the_scans_of_the_manifest() -> None:
    found = [*ROOT.glob("mr/sub-*/*/*.gz"), *ROOT.glob("ct/sub-*/*/*.gz")]
    assert {path.relative_to(ROOT).as_posix() for path in found} == {row["path"] for row in MANIFEST}


def test_groups_are_large_enough_for_their_purpose() -> None:
    counts = {
        (modality, split, group): sum(
            (row["modality"], row["split"], row["group"]) == (modality, split, group) for row in MANIFEST
        )
        for modality in ("T1w", "CT")
        for split in ("train", "calibration", "test")
        for group in ("healthy", "lesion")
    }
    assert counts["T1w", "train", "healthy"] == 24
    assert 1 / (counts["T1w", "calibration", "healthy"] + 1) <= 0.05
    assert counts["T1w", "test", "healthy"] == 8
    assert counts["T1w", "test", "lesion"] == 6
    assert counts["CT", "train", "healthy"] == 15
    assert 1 / (counts["CT", "calibration", "healthy"] + 1) <= 0.1
    assert counts["CT", "test", "healthy"] == 3
    assert counts["CT", "test", "lesion"] == 6
    assert not any(count for (_, split, group), count in counts.items() if split != "test" and group == "lesion")


def test_no_subject_is_in_two_splits() -> None:
    assert len({row["subject"] for row in MANIFEST}) == len(MANIFEST)


def test_labels_and_masks_agree_with_the_manifest() -> None:
    labels = {row["subject"]: row for row in read_rows("labels.tsv")}
    assert set(labels) == {row["subject"] for row in MANIFEST}
    for row in MANIFEST:
        assert labels[row["subject"]]["mask"] == row["mask"]
        assert labels[row["subject"]]["label"] == str(int(row["group"] == "lesion"))
        assert bool(row["mask"]) == (row["group"] == "lesion")


@pytest.mark.parametrize("row", MASKED, ids=lambda row: row["subject"])
def test_a_lesion_mask_has_the_grid_of_its_scan_and_the_given_volume(row: dict[str, str]) -> None:
    voxels, affine = read_image(row["path"])
    mask, mask_affine = read_image(row["mask"])
    assert mask.shape == voxels.shape
    assert np.array_equal(mask_affine, affine)
    assert set(np.unique(mask)) == {0, 1}
    lesion = member(number_of(row)).lesion
    assert lesion is not None
    volume_ml = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert volume_ml == pytest.approx(lesion.volume_ml, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", LESION_NUMBERS)
def test_a_lesion_changes_only_the_voxels_around_its_mask(number: int, heads: Heads) -> None:
    abnormal = member(number)
    planted = make.scan_member(abnormal, heads)
    healthy = make.scan_member(cohort.Member(number, abnormal.modality, abnormal.split), heads)
    assert planted.lesion is not None
    assert abnormal.lesion is not None
    depth = ndimage.binary_erosion(planted.lesion)
    change = planted.voxels.astype(float) - healthy.voxels
    typical = np.median(change[depth])
    if abnormal.lesion.effect == "signal_factor":
        ratio = np.median(planted.voxels[depth] / healthy.voxels[depth])
        assert ratio == pytest.approx(abnormal.lesion.amount, abs=0.1)
    elif abnormal.lesion.effect == "hounsfield_shift":
        assert typical == pytest.approx(abnormal.lesion.amount, abs=3)
    else:
        assert np.median(planted.voxels[depth]) == pytest.approx(abnormal.lesion.amount, abs=8)
    assert np.abs(change[~planted.lesion]).mean() < 0.05 * abs(typical)


@pytest.mark.parametrize("row", T1W, ids=lambda row: row["subject"])
def test_a_t1_scan_is_a_whole_brain_without_its_head(row: dict[str, str]) -> None:
    voxels, affine = read_image(row["path"])
    brain = voxels > 0
    assert voxels.dtype == np.uint8
    assert 1000 < brain.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000 < 2200
    canonical = nib.as_closest_canonical(nib.Nifti1Image(brain.astype(np.uint8), affine)).get_fdata()
    borders = (canonical[0], canonical[-1], canonical[:, 0], canonical[:, -1], canonical[:, :, -1])
    assert not any(border.any() for border in borders)


@pytest.mark.parametrize("row", CT, ids=lambda row: row["subject"])
def test_hounsfield_units_are_plausible(row: dict[str, str]) -> None:
    voxels, _ = read_image(row["path"])
    brain, _ = read_image(member(number_of(row)).brain_path)
    corner = voxels[:3, :3, -3:]
    assert np.mean(corner) == pytest.approx(-1000, abs=5)
    assert np.percentile(voxels, 99) > 700
    assert voxels.max() < 2000
    assert 25 < np.median(voxels[brain > 0]) < 42


def test_orientations_and_spacings_vary() -> None:
    affines = [read_image(row["path"])[1] for row in T1W]
    codes = {"".join(nib.aff2axcodes(affine)) for affine in affines}
    spacings = {tuple(np.round(nib.affines.voxel_sizes(affine), 1)) for affine in affines}
    oblique = [nib.affines.obliquity(affine).max() > np.deg2rad(2) for affine in affines]
    assert codes == {"RAS", "LPS", "PSR"}
    assert spacings == {(4.0, 4.0, 4.0), (3.5, 3.5, 5.0)}
    assert 0 < sum(oblique) < len(oblique) / 2


@pytest.mark.parametrize("row", read_rows("formats.csv")[1:], ids=lambda row: row["modality"])
def test_a_dicom_series_is_the_same_scan_as_the_nifti_file(row: dict[str, str]) -> None:
    twin = next(each for each in MANIFEST if each["subject"] == row["subject"])
    voxels, affine = read_image(twin["path"])
    slices = read_series(row["path"])
    assert len(slices) == voxels.shape[2]
    for index in (0, len(slices) // 2, len(slices) - 1):
        image = slices[index]
        stored = image.pixel_array.T * float(image.get("RescaleSlope", 1)) + float(image.get("RescaleIntercept", 0))
        assert np.array_equal(stored, voxels[:, :, index])
        across, down = np.split(np.array(image.ImageOrientationPatient, dtype=float), 2)
        corner = np.array(image.ImagePositionPatient, dtype=float)
        far = corner + 5 * across * float(image.PixelSpacing[1]) + 7 * down * float(image.PixelSpacing[0])
        assert far * (-1, -1, 1) == pytest.approx(nib.affines.apply_affine(affine, [5, 7, index]), abs=1e-3)


def test_dicom_headers_contain_no_patient_data() -> None:
    for path in ROOT.glob("**/*.dcm"):
        image = pydicom.dcmread(path, stop_before_pixels=True)
        assert str(image.PatientName) == path.parent.name or str(image.PatientName) == "sub-81"
        assert image.PatientIdentityRemoved == "YES"
        assert image.PatientBirthDate == ""


def test_the_faults_are_those_of_the_table() -> None:
    faults = {row["path"]: row["fault"] for row in read_rows("refuse/faults.tsv")}
    assert set(faults) == {path.name for path in (ROOT / "refuse").iterdir()} - {"faults.tsv"}
    with pytest.raises(EOFError):
        read_image("refuse/truncated_T1w.nii.gz")
    assert read_image("refuse/four_dimensional_T1w.nii.gz")[0].ndim == 4
    assert np.ptp(read_image("refuse/constant_T1w.nii.gz")[0]) == 0
    assert np.isnan(read_image("refuse/not_a_number_T1w.nii.gz")[0]).any()
    assert read_image("refuse/tiny_field_of_view_T1w.nii.gz")[0].shape[2] == 5
    assert np.linalg.det(read_image("refuse/zero_affine_T1w.nii.gz")[1][:3, :3]) == 0
    assert nib.affines.voxel_sizes(read_image("refuse/absurd_spacing_T1w.nii.gz")[1]).min() > 100
    numbers = [int(image.InstanceNumber) for image in read_series("refuse/missing_slice")]
    assert np.diff(numbers).max() == 2
    assert "PixelData" not in read_series("refuse/no_image")[0]


def test_the_folder_is_small() -> None:
    sizes = [path.stat().st_size for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(sizes) < 7e6
    assert max(sizes) < 1e6


def test_compressed_files_contain_no_time_and_no_name() -> None:
    for path in ROOT.glob("**/*.nii.gz"):
        header = path.read_bytes()[:10]
        assert header[3] == 0, path
        assert header[4:8] == bytes(4), path


@pytest.mark.slow
def test_drawing_a_subject_is_reproducible(heads: Heads) -> None:
    first, second = (scan_mr(make.draw_patient(7, heads[1.0], BRAIN)) for _ in range(2))
    assert np.array_equal(first.voxels, second.voxels)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 55, 68, 112])
def test_the_script_reproduces_the_stored_scans(number: int, heads: Heads) -> None:
    each = member(number)
    scan = make.scan_member(each, heads)
    voxels, affine = read_image(each.scan_path)
    assert np.array_equal(scan.grid.affine, affine)
    # Another version of a numerical library may round single voxels the other way.
    assert np.abs(scan.voxels.astype(int) - voxels).max() <= 1


@pytest.mark.slow
def test_making_scans_twice_gives_the_same_bytes(
    tmp_path: Path, heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.main(["--out", str(tmp_path / "all")])
    made = digests(tmp_path / "all")
    monkeypatch.setattr(make, "make_heads", lambda: heads)  # made before, independently of the first run
    monkeypatch.setattr(make, "members", lambda: [member(number) for number in MADE_TWICE])
    make.main(["--out", str(tmp_path / "some")])
    again = digests(tmp_path / "some")
    images = {path for path in again if path.endswith((".nii.gz", ".dcm")) or path.startswith("refuse/")}
    assert len(images) > len(MADE_TWICE)
    assert {path: made[path] for path in images} == {path: again[path] for path in images}
    stored = {f"{folder}/{path}" for folder in make.FOLDERS for path in digests(ROOT / folder)}
    assert set(made) == stored | {"manifest.csv", "formats.csv", "labels.tsv"}


def share_with_calcification(age: int, n: int = 200) -> float:
    """Return the share of subjects of an age that have any calcification."""
    nowhere = np.zeros((1, 1, 1, 3))
    return float(np.mean([any(True for _ in draw_calcifications(k, Person(age, "F"), nowhere)) for k in range(n)]))


def test_calcifications_become_more_frequent_with_age() -> None:
    young, old = share_with_calcification(20), share_with_calcification(80)
    assert 0.3 < young < 0.6
    assert 0.8 < old < 1


@pytest.mark.slow
def test_bone_shares_the_voxels_of_thick_slices_with_brain(heads: Heads) -> None:
    def rim(thickness_mm: float) -> float:
        patient = patient_of(5, heads[1.0], (2.0, 2.0, thickness_mm))
        voxels = scan_ct(patient).voxels
        return float(np.mean((voxels > 60) & (voxels < 400)))

    assert rim(5.0) > 1.1 * rim(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [112, 113])
def test_blood_outside_the_brain_touches_the_skull(number: int) -> None:
    row = next(row for row in CT if number_of(row) == number)
    voxels, _ = read_image(row["path"])
    lesion = read_image(row["mask"])[0] > 0
    around = ndimage.binary_dilation(lesion, iterations=2) & ~lesion
    assert (voxels[around] > 300).mean() > 0.15


def patient_of(number: int, head: Anatomy, spacing_mm: tuple[float, float, float]) -> Patient:
    grid = make_grid(HEAD, "LPS", spacing_mm)
    return sample_slices(number, head, draw_warp(number, draw_person(number)), grid)


@pytest.mark.slow
def test_grey_matter_is_brighter_than_white_in_flair_and_csf_is_bright_in_t2w_only(heads: Heads) -> None:
    patient = make.draw_patient(5, heads[1.0], BRAIN)

    def signal(contrast: Contrast, tissue: str) -> float:
        return float(np.median(scan_mr(patient, contrast=contrast).voxels[patient.maps[tissue] > 0.9]))

    flair = [signal("FLAIR", tissue) for tissue in ("csf", "white", "grey")]
    t2w = [signal("T2w", tissue) for tissue in ("white", "grey", "csf")]
    assert flair == sorted(flair)
    assert t2w == sorted(t2w)
    assert t2w[2] > 2 * t2w[1]
    assert flair[0] < 0.6 * flair[1]
