"""Reading DICOM series as volumes in RAS+ millimetres, and refusing those that are not one volume."""

from __future__ import annotations

import errno
import io
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from scipy.ndimage import map_coordinates

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality, Volume
from anomaly.io.discover import discover
from tests.io.dicom_factory import encode, make_series, make_slice, uid, write_series, write_zip

TILT = np.deg2rad(18.5)
OBLIQUE = (0.96, 0.28, 0.0, -0.28 * np.cos(0.4), 0.96 * np.cos(0.4), np.sin(0.4))


def read_one(folder: Path) -> Volume:
    (scan,) = discover([folder])
    return scan.read()


def refusal(folder: Path) -> ScanRefusedError:
    (scan,) = discover([folder])
    with pytest.raises(ScanRefusedError) as caught:
        scan.read()
    return caught.value


class _FailingFile(io.FileIO):
    def readinto(self, _: object) -> int:
        raise OSError(errno.EIO, "Input/output error")


def fail_to_open(monkeypatch: pytest.MonkeyPatch, path: Path, opens: bool = False) -> None:
    """Let a file fail with an input/output error: when it is opened, or when its bytes are read."""
    real = Path.open

    def failing(file: Path, *arguments: Any, **keywords: Any) -> Any:
        if file != path:
            return real(file, *arguments, **keywords)
        if opens:
            return io.BufferedReader(_FailingFile(path))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", failing)


def with_dcm2niix(source: Path, output: Path, *options: str) -> dict[str, nib.Nifti1Image]:
    dcm2niix = pytest.importorskip("dcm2niix", reason="dcm2niix is the reference reader")
    output.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "n", *options, "-f", "scan", "-o", str(output), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return {path.stem: nib.load(path) for path in sorted(output.glob("*.nii"))}


def assert_same_image(volume: Volume, reference: nib.Nifti1Image, atol_mm: float = 1e-3) -> None:
    """Both have the same values at the same places, however the axes are ordered."""
    ours = nib.as_closest_canonical(nib.Nifti1Image(volume.voxels, volume.geometry.affine))
    theirs = nib.as_closest_canonical(reference)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=atol_mm)
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), rtol=1e-5, atol=1e-3)


def test_voxel_positions_follow_the_header(tmp_path: Path) -> None:
    series = make_series(n_slices=5, orientation=OBLIQUE, step=3.0 * np.cross(OBLIQUE[:3], OBLIQUE[3:]))
    volume = read_one(write_series(tmp_path / "series", series))
    row, column, index = 3, 7, 2
    ds = series[index]
    lps = (
        np.array(ds.ImagePositionPatient, dtype=float)
        + column * ds.PixelSpacing[1] * np.array(ds.ImageOrientationPatient[:3])
        + row * ds.PixelSpacing[0] * np.array(ds.ImageOrientationPatient[3:])
    )
    found = volume.geometry.to_index(lps * [-1, -1, 1])
    np.testing.assert_allclose(found, [column, row, index], atol=1e-4)
    assert volume.voxels[column, row, index] == ds.pixel_array[row, column]


@pytest.mark.parametrize("step", [(0, 0, 3.0), (0, 0, -3.0)], ids=["upwards", "downwards"])
def test_geometry_agrees_with_dcm2niix(tmp_path: Path, step: Sequence[float]) -> None:
    folder = write_series(tmp_path / "series", make_series(step=step))
    (reference,) = with_dcm2niix(folder, tmp_path / "reference").values()
    assert_same_image(read_one(folder), reference)


def test_oblique_geometry_agrees_with_dcm2niix(tmp_path: Path) -> None:
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    folder = write_series(tmp_path / "series", make_series(orientation=OBLIQUE, step=2.5 * normal))
    (reference,) = with_dcm2niix(folder, tmp_path / "reference").values()
    assert_same_image(read_one(folder), reference)


def test_rescale_gives_hounsfield_units(tmp_path: Path) -> None:
    series = make_series(modality="CT")
    volume = read_one(write_series(tmp_path / "series", series))
    assert volume.modality is Modality.CT
    assert volume.voxels[0, 0, 0] == int(series[0].pixel_array[0, 0]) - 1024


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    series = make_series(n_slices=3)
    for index, ds in enumerate(series):
        ds.RescaleSlope, ds.RescaleIntercept = index + 1, 10 * index
    volume = read_one(write_series(tmp_path / "series", series))
    expected = series[2].pixel_array.astype(float) * 3 + 20
    np.testing.assert_array_equal(volume.voxels[:, :, 2], expected.T)


def test_monochrome1_is_inverted_so_that_larger_is_brighter(tmp_path: Path) -> None:
    series = make_series(PhotometricInterpretation="MONOCHROME1")
    volume = read_one(write_series(tmp_path / "series", series))
    np.testing.assert_array_equal(volume.voxels[:, :, 0], 65535.0 - series[0].pixel_array.T)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless, JPEGLSLossless], ids=lambda s: s.name)
def test_compressed_pixels_are_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    plain = read_one(write_series(tmp_path / "plain", make_series(shape=(64, 48))))
    series = make_series(shape=(64, 48))
    for ds in series:
        ds.compress(syntax, generate_instance_uid=False)
    packed = read_one(write_series(tmp_path / "packed", series))
    np.testing.assert_array_equal(plain.voxels, packed.voxels)


@pytest.mark.slow
def test_an_enhanced_multi_frame_image_reads_like_its_single_frames(tmp_path: Path) -> None:
    series = make_series(n_slices=6, orientation=OBLIQUE, step=2.5 * np.cross(OBLIQUE[:3], OBLIQUE[3:]))
    enhanced = LegacyConvertedEnhancedMRImage(series, uid("enhanced"), 9, uid("enhanced", 1), 1)
    classic = read_one(write_series(tmp_path / "classic", series))
    multi = read_one(write_series(tmp_path / "enhanced", [enhanced]))
    np.testing.assert_array_equal(classic.voxels, multi.voxels)
    assert classic.geometry.same_as(multi.geometry)


def test_geometry_agrees_with_highdicom(tmp_path: Path) -> None:
    series = make_series(n_slices=5, orientation=OBLIQUE, step=2.5 * np.cross(OBLIQUE[:3], OBLIQUE[3:]))
    theirs = highdicom.get_volume_from_series(series)
    ours = read_one(write_series(tmp_path / "series", series))
    image = nib.Nifti1Image(np.asarray(theirs.array, dtype=np.float32), np.diag([-1, -1, 1, 1]) @ theirs.affine)
    assert_same_image(ours, image)


def test_gantry_tilt_is_part_of_the_affine(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", _tilted())
    volume = read_one(folder)
    np.testing.assert_array_equal(
        volume.voxels, np.round(_anatomy(volume.geometry.affine, volume.voxels.shape)) - 1024
    )
    _, j, k = volume.geometry.affine[:3, :3].T
    assert abs(np.dot(j, k)) > 0.1 * np.linalg.norm(j) * np.linalg.norm(k), "the slices are shifted, not turned"


@pytest.mark.slow
def test_tilted_slices_agree_with_the_image_that_dcm2niix_corrected(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", _tilted())
    corrected = next(i for name, i in with_dcm2niix(folder, tmp_path / "reference").items() if "Tilt" in name)
    volume = read_one(folder)
    indices = np.moveaxis(np.indices(corrected.shape), 0, -1)
    world = indices @ corrected.affine[:3, :3].T + corrected.affine[:3, 3]
    ours = map_coordinates(volume.voxels, np.moveaxis(volume.geometry.to_index(world), -1, 0), order=1, cval=np.nan)
    inside = np.isfinite(ours) & (corrected.get_fdata() > -1000)
    assert inside.mean() > 0.6
    assert np.percentile(np.abs(ours - corrected.get_fdata())[inside], 95) < 3


def _anatomy(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a smooth function of the place in the world, 200 to 1800."""
    x, y, z = np.moveaxis(np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    return 1000 + 300 * np.sin(x / 25) + 300 * np.cos(y / 30) + 200 * np.sin(z / 40)


def _tilted() -> list:
    orientation = (1.0, 0.0, 0.0, 0.0, np.cos(TILT), -np.sin(TILT))
    slices = []
    for k in range(40):
        affine = np.eye(4)
        affine[:3, 0] = 1.5 * np.array([-1.0, 0.0, 0.0])
        affine[:3, 1] = 1.5 * np.array([0.0, -np.cos(TILT), -np.sin(TILT)])
        affine[:3, 3] = [70.0, 60.0, -80.0 + 3.0 * k]
        pixels = np.round(_anatomy(affine, (96, 96, 1)))[:, :, 0].T.astype(np.int16)
        slices.append(
            make_slice(k, (-70.0, -60.0, -80.0 + 3.0 * k), pixels, "CT", orientation=orientation,
                       spacing=(1.5, 1.5), GantryDetectorTilt=18.5)
        )  # fmt: skip
    return slices


def test_a_missing_slice_is_refused_with_the_spacings_found(tmp_path: Path) -> None:
    series = make_series(n_slices=20)
    del series[9]
    error = refusal(write_series(tmp_path / "series", series))
    assert error.code == "missing_slices"
    assert "3.00 mm apart (17×), 6.00 mm apart (1×): 1 missing" in error.found


def test_uneven_spacing_is_refused_with_the_spacings_found(tmp_path: Path) -> None:
    thin, thick = make_series(n_slices=6), make_series(n_slices=6, start=(-10, -20, 27), step=(0, 0, 5), seed=1)
    for index, ds in enumerate(thick):
        ds.SOPInstanceUID = uid("thick", index)
    error = refusal(write_series(tmp_path / "series", thin + thick))
    assert error.code == "uneven_spacing"
    assert "3.00 mm apart (5×)" in error.found
    assert "5.00 mm apart (5×)" in error.found


def test_a_slice_shifted_sideways_is_refused(tmp_path: Path) -> None:
    series = make_series(n_slices=8)
    series[4].ImagePositionPatient[0] += 4
    assert refusal(write_series(tmp_path / "series", series)).code == "uneven_spacing"


def test_positions_rounded_by_the_scanner_are_accepted(tmp_path: Path) -> None:
    series = make_series(n_slices=20, step=(0, 0, 2.96))
    for ds in series:
        ds.ImagePositionPatient[2] = round(float(ds.ImagePositionPatient[2]), 1)
    assert read_one(write_series(tmp_path / "series", series)).voxels.shape[2] == 20


def test_the_same_slice_twice_counts_once(tmp_path: Path) -> None:
    series = make_series(n_slices=6)
    copy = make_series(n_slices=6)[2]
    copy.SOPInstanceUID = uid("copy")
    assert read_one(write_series(tmp_path / "series", [*series, copy])).voxels.shape[2] == 6


def test_several_volumes_in_one_series_are_refused(tmp_path: Path) -> None:
    volumes = [make_series(n_slices=4, seed=t, series="bold") for t in range(5)]
    for t, volume in enumerate(volumes):
        for k, ds in enumerate(volume):
            ds.SOPInstanceUID, ds.AcquisitionNumber = uid("bold", t, k), t
    error = refusal(write_series(tmp_path / "series", [ds for volume in volumes for ds in volume]))
    assert error.code == "not_3d"


def test_a_multi_frame_file_of_one_position_is_called_so(tmp_path: Path) -> None:
    ds = make_series(1, NumberOfFrames=3)[0]
    ds.PixelData = np.arange(240, dtype="<u2").tobytes()
    error = refusal(write_series(tmp_path / "series", [ds]))
    assert error.code == "not_3d"
    assert error.found == "3 images at one position: a time series of one slice"


def test_images_without_position_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", make_series(ImagePositionPatient=None))
    assert refusal(folder).code == "missing_geometry"


@pytest.mark.parametrize("container", [".dcm", "", "zip"])
@pytest.mark.parametrize("n_lost", [2, 60, 158])
def test_pixels_that_are_cut_refuse_the_series(tmp_path: Path, container: str, n_lost: int) -> None:
    contents = [encode(ds) for ds in make_series()]
    contents[5] = contents[5][:-n_lost]
    if container == "zip":
        source = write_zip(tmp_path / "series.zip", contents)
    else:
        source = write_series(tmp_path / "series", contents, container)
    error = refusal(source)
    assert error.code == "unreadable"
    assert error.found.startswith(
        "1 of 6 files damaged (file 6 in the order of names: an image that cannot be decoded"
    )


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless, JPEGLSLossless], ids=lambda s: s.name)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_compressed_pixels_that_are_cut_refuse_the_series(tmp_path: Path, syntax: str, share: float) -> None:
    series = make_series(3, shape=(64, 48))
    for ds in series:
        ds.compress(syntax, generate_instance_uid=False)
    contents = [encode(ds) for ds in series]
    start = contents[2].index(b"\xe0\x7f\x10\x00")
    contents[2] = contents[2][: start + int(share * (len(contents[2]) - start))]
    assert refusal(write_series(tmp_path / "series", contents)).code == "unreadable"


def test_a_member_of_a_zip_with_a_wrong_checksum_refuses_the_series(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "series.zip", make_series(3, shape=(64, 48)))
    content = bytearray(path.read_bytes())
    content[len(content) * 9 // 10 - 200] ^= 0xFF
    path.write_bytes(bytes(content))
    assert refusal(path).found.startswith("1 of 3 files damaged")


def test_a_file_that_cannot_be_read_now_does_not_make_the_series_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scan,) = discover([write_series(tmp_path / "series", make_series())])
    fail_to_open(monkeypatch, scan.files[2].path)
    with pytest.raises(ScanRefusedError) as caught:
        scan.read()
    assert (caught.value.code, caught.value.is_transient) == ("unreadable", True)
    monkeypatch.undo()
    assert scan.read().voxels.shape == (10, 8, 6)


@pytest.mark.parametrize("opens", [False, True], ids=["open", "read"])
def test_a_header_that_cannot_be_read_now_refuses_the_series_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    folder = write_series(tmp_path / "series", make_series())
    fail_to_open(monkeypatch, sorted(folder.iterdir())[2], opens)
    error = refusal(folder)
    assert error.found.startswith("1 of 6 files damaged")
    assert error.is_transient


@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_slice_that_ends_with_zeros_refuses_the_series(tmp_path: Path, number: int) -> None:
    contents = [encode(ds) for ds in make_series(6, shape=(32, 40))]
    contents[number] = contents[number][:-1000] + bytes(1000)
    error = refusal(write_series(tmp_path / "series", contents))
    assert error.code == "unreadable"
    assert error.found.endswith(f"slice {number + 1} in the order of positions")


@pytest.mark.parametrize("number", [0, 5])
def test_a_blank_end_slice_marks_the_scan(tmp_path: Path, number: int) -> None:
    series = make_series(6)
    series[number].PixelData = bytes(160)
    volume = read_one(write_series(tmp_path / "series", series))
    assert [w.found for w in volume.warnings] == ["blank slices at the ends of the stack: 1"]


def test_zeros_from_the_middle_of_a_multi_frame_file_refuse_it(tmp_path: Path) -> None:
    enhanced = LegacyConvertedEnhancedMRImage(make_series(6), uid("enhanced"), 9, uid("enhanced", 1), 1)
    enhanced.PixelData = enhanced.PixelData[:400] + bytes(560)
    error = refusal(write_series(tmp_path / "enhanced", [enhanced]))
    assert error.found.startswith("1 of 6 slices with zeros")


def test_a_blank_slice_inside_the_stack_refuses_the_series(tmp_path: Path) -> None:
    series = make_series(6)
    series[3].PixelData = bytes(160)
    assert refusal(write_series(tmp_path / "series", series)).code == "unreadable"


def test_a_background_of_zeros_is_part_of_the_image(tmp_path: Path) -> None:
    series = make_series(8, shape=(40, 40))
    rows, columns = np.mgrid[:40, :40]
    for k, ds in enumerate(series):
        radius = 18 * np.sqrt(1 - ((k - 3.5) / 4.5) ** 2)
        ds.PixelData = ((np.hypot(rows - 20, columns - 20) < radius) * ds.pixel_array).astype("<u2").tobytes()
    series[7].PixelData = bytes(3200)
    assert read_one(write_series(tmp_path / "series", series)).voxels.shape[2] == 8


@pytest.mark.parametrize(
    "change",
    [{"PixelRepresentation": 1}, {"PhotometricInterpretation": "MONOCHROME1"},
     {"RescaleSlope": None, "RescaleIntercept": None}],
    ids=["sign", "photometric interpretation", "no rescale"],
)  # fmt: skip
def test_a_slice_of_another_pixel_format_refuses_the_series(tmp_path: Path, change: dict[str, object]) -> None:
    series = make_series(6, RescaleSlope=2, RescaleIntercept=1)
    values = {"RescaleSlope": 2, "RescaleIntercept": 1, **change}
    series[4] = make_series(6, **{k: v for k, v in values.items() if v is not None})[4]
    error = refusal(write_series(tmp_path / "series", series))
    assert error.code == "mixed_pixel_formats"
    assert error.found.startswith("1 of 6 slices")


def test_a_slice_with_fewer_bits_has_the_same_values(tmp_path: Path) -> None:
    series = make_series(6)
    expected = series[3].pixel_array.T.copy()
    series[3].BitsStored, series[3].HighBit = 12, 11
    np.testing.assert_array_equal(read_one(write_series(tmp_path / "s", series)).voxels[:, :, 3], expected)


def test_one_slice_with_another_rescale_marks_the_scan(tmp_path: Path) -> None:
    series = make_series(12, RescaleSlope=2, RescaleIntercept=1)
    series[4].RescaleSlope = 3
    volume = read_one(write_series(tmp_path / "series", series))
    np.testing.assert_array_equal(volume.voxels[:, :, 4], series[4].pixel_array.T * 3.0 + 1)
    assert [w.found for w in volume.warnings] == ["1 of 12 slices with another rescale than the others"]


def test_an_orientation_that_is_no_rotation_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", make_series(ImageOrientationPatient=[1, 0, 0, 0.7, 0.7, 0]))
    assert refusal(folder).code == "absurd_geometry"


def test_several_volumes_in_one_enhanced_file_are_refused(tmp_path: Path) -> None:
    volumes = [make_series(n_slices=4, seed=t) for t in range(3)]
    for t, volume in enumerate(volumes):
        for k, ds in enumerate(volume):
            ds.SOPInstanceUID, ds.TemporalPositionIdentifier = uid("volume", t, k), t
    frames = [ds for volume in volumes for ds in volume]
    enhanced = LegacyConvertedEnhancedMRImage(frames, uid("enhanced"), 9, uid("enhanced", 1), 1)
    error = refusal(write_series(tmp_path / "enhanced", [enhanced]))
    assert error.code == "not_3d"
    assert error.found == "12 images at 4 positions: several volumes in one series"


def test_an_enhanced_file_without_a_frame_is_refused(tmp_path: Path) -> None:
    enhanced = LegacyConvertedEnhancedMRImage(make_series(6), uid("enhanced"), 9, uid("enhanced", 1), 1)
    enhanced.NumberOfFrames = 5
    enhanced.PixelData = enhanced.PixelData[: 5 * 160]
    assert refusal(write_series(tmp_path / "enhanced", [enhanced])).code == "bad_pixel_description"


def test_a_multi_frame_file_without_geometry_is_called_so(tmp_path: Path) -> None:
    enhanced = LegacyConvertedEnhancedMRImage(make_series(6), uid("enhanced"), 9, uid("enhanced", 1), 1)
    del enhanced.PerFrameFunctionalGroupsSequence, enhanced.SharedFunctionalGroupsSequence
    error = refusal(write_series(tmp_path / "enhanced", [enhanced]))
    assert error.code == "missing_geometry"
    assert error.found.startswith("a frame of a multi-frame image")


def test_a_zip_is_read_in_memory_and_nothing_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    path = write_zip(tmp_path / "inbox" / "scan.zip", make_series(), folder="../../outside")
    before = sorted(tmp_path.rglob("*"))
    volume = read_one(path)
    plain = read_one(write_series(tmp_path / "plain", make_series()))
    np.testing.assert_array_equal(volume.voxels, plain.voxels)
    assert sorted(p for p in tmp_path.rglob("*") if "plain" not in p.parts) == before


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "scan.zip", make_series())
    path.write_bytes(path.read_bytes()[:200])
    assert refusal(path).code == "unreadable"


def test_a_zip_without_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    assert refusal(path).code == "unreadable"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mr_t1_384slices", "ct_body_jpeg2000"])
def test_a_real_series_agrees_with_dcm2niix(anomaly_data: Path, tmp_path: Path, name: str) -> None:
    source = anomaly_data / "dicom" / f"{name}.zip"
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "files")
    (reference,) = with_dcm2niix(tmp_path / "files", tmp_path / "reference").values()
    assert_same_image(read_one(source), reference, atol_mm=2e-2)


@pytest.mark.real_data
def test_the_real_ct_with_three_spacings_is_refused(anomaly_data: Path) -> None:
    error = refusal(anomaly_data / "dicom" / "ct_head_gantry_tilt.zip")
    assert error.code == "uneven_spacing"
    assert error.found == "slices 1.08 mm apart (1×), 4.00 mm apart (13×), 7.00 mm apart (13×)"


@pytest.mark.real_data
def test_the_real_body_ct_is_in_hounsfield_units(anomaly_data: Path) -> None:
    volume = read_one(anomaly_data / "dicom" / "ct_body_jpeg2000.zip")
    assert volume.modality is Modality.CT
    assert volume.voxels.min() == -1024
    soft = volume.voxels[(volume.voxels > -200) & (volume.voxels < 200)]
    assert -120 < np.median(soft) < 80


@pytest.mark.real_data
def test_the_real_enhanced_time_series_is_refused(anomaly_data: Path) -> None:
    (scan,) = discover([anomaly_data / "dicom" / "mr_enhanced_multiframe.zip"])
    assert scan.refusal is not None
    assert scan.refusal.found == "a BOLD image by its header"
    with pytest.raises(ScanRefusedError) as caught:
        replace(scan, refusal=None).read()
    assert caught.value.code == "not_3d"
    assert "24 images at 6 positions" in caught.value.found
