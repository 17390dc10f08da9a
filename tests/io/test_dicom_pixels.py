"""Decoding the pixels of a DICOM image: the right values, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from anomaly.core.errors import ScanRefusedError
from anomaly.io.dicom_pixels import decode_pixels, pixel_format, rescaled, stored_zero
from tests.io.dicom_factory import make_series


def image(**values: Any) -> FileDataset:
    return make_series(1, **values)[0]


def twelve_bits(**values: Any) -> FileDataset:
    return image(BitsStored=12, HighBit=11, **values)


def code(ds: Dataset) -> str:
    with pytest.raises(ScanRefusedError) as caught:
        decode_pixels(ds)
    return caught.value.code


@pytest.mark.parametrize(
    "values",
    [{"PhotometricInterpretation": "PALETTE COLOR"}, {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3},
     {"PhotometricInterpretation": "YBR_FULL"}, {"PhotometricInterpretation": "RGB"}, {"SamplesPerPixel": 3}],
)  # fmt: skip
def test_colour_images_are_refused(values: dict[str, Any]) -> None:
    assert code(image(**values)) == "not_scalar"


@pytest.mark.parametrize(
    "values",
    [{"HighBit": 14}, {"HighBit": 11}, {"BitsStored": 12}, {"BitsAllocated": 8}, {"BitsStored": 17, "HighBit": 16}],
)
def test_a_bit_layout_that_cannot_be_is_refused(values: dict[str, int]) -> None:
    assert code(image(**values)) == "bad_pixel_description"


def test_values_above_the_stored_bits_are_refused_not_cut() -> None:
    assert code(image(BitsStored=8, HighBit=7)) == "bad_pixel_description"


@pytest.mark.parametrize("fill", [0xF000, 0], ids=["sign extended", "not extended"])
def test_negative_values_of_twelve_bits_are_right(fill: int) -> None:
    ds = twelve_bits(PixelRepresentation=1)
    ds.PixelData = np.full((8, 10), fill | 0x0FFB, np.uint16).tobytes()
    np.testing.assert_array_equal(decode_pixels(ds), np.full((1, 8, 10), -5))


def test_overlays_in_unused_bits_do_not_change_the_values() -> None:
    ds = twelve_bits()
    expected = ds.pixel_array.copy()
    ds.PixelData = (expected | 0x8000).astype("<u2").tobytes()
    ds.add_new(0x60000102, "US", 15)
    np.testing.assert_array_equal(decode_pixels(ds)[0], expected)


@pytest.mark.filterwarnings("ignore:The (pixel data|number of bytes)")
@pytest.mark.parametrize("values", [{"Rows": 7}, {"Columns": 9}, {"Rows": 4}])
def test_more_pixels_than_rows_and_columns_are_refused(values: dict[str, int]) -> None:
    assert code(image(**values)) == "bad_pixel_description"


@pytest.mark.parametrize("values", [{"Rows": 9}, {"Columns": 11}, {"NumberOfFrames": 2}])
def test_fewer_pixels_than_rows_and_columns_cannot_be_decoded(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="less than expected"):
        decode_pixels(image(**values))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_compressed_pixels_that_end_with_zeros_cannot_be_decoded(syntax: str, share: float) -> None:
    ds = make_series(1, shape=(64, 48))[0]
    ds.compress(syntax, generate_instance_uid=False)
    assert decode_pixels(ds).shape == (1, 64, 48)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    n_kept = int(share * len(frame))
    ds.PixelData = encapsulate([frame[:n_kept] + bytes(len(frame) - n_kept)])
    with pytest.raises((ValueError, RuntimeError)):
        decode_pixels(ds)


@pytest.mark.filterwarnings("ignore:The pixel data")
def test_zeros_behind_the_pixels_are_padding() -> None:
    ds = image()
    expected = ds.pixel_array.copy()
    ds.PixelData += bytes(32)
    np.testing.assert_array_equal(decode_pixels(ds)[0], expected)


def test_more_frames_than_the_header_counts_are_refused() -> None:
    ds = image(NumberOfFrames=2)
    ds.PixelData *= 2
    assert decode_pixels(ds).shape == (2, 8, 10)
    ds.PerFrameFunctionalGroupsSequence = Sequence([Dataset()] * 3)
    assert code(ds) == "bad_pixel_description"


def test_monochrome1_is_inverted_except_in_ct() -> None:
    mr, ct = (image(modality=m, PhotometricInterpretation="MONOCHROME1") for m in ("MR", "CT"))
    np.testing.assert_array_equal(decode_pixels(mr)[0], 65535 - mr.pixel_array.astype(int))
    np.testing.assert_array_equal(decode_pixels(ct)[0], ct.pixel_array)
    assert (stored_zero(mr, mr), stored_zero(ct, ct)) == (65535, -1024)


def test_values_are_rescaled_by_slope_and_intercept() -> None:
    ds = image(RescaleSlope="2.5", RescaleIntercept="-10")
    expected = (ds.pixel_array.astype(float) * 2.5 - 10).astype(np.float32)
    np.testing.assert_array_equal(rescaled(decode_pixels(ds)[0], ds), expected)


def test_values_go_through_the_modality_lut() -> None:
    ds, lut = image(), Dataset()
    lut.LUTDescriptor, lut.LUTData = [4, 0, 16], [7, 8, 9, 10]
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    ds.ModalityLUTSequence = Sequence([lut])
    np.testing.assert_array_equal(rescaled(np.array([[0, 1, 2, 3, 99]]), ds), [[7, 8, 9, 10, 10]])


@pytest.mark.parametrize(
    "values",
    [{"RescaleSlope": 2}, {"RescaleIntercept": 3}, {"RescaleSlope": 0, "RescaleIntercept": 3},
     {"RescaleSlope": "", "RescaleIntercept": 3}],
)  # fmt: skip
def test_half_a_rescale_is_refused(values: dict[str, Any]) -> None:
    ds = image(**values)
    with pytest.raises(ScanRefusedError) as caught:
        rescaled(decode_pixels(ds)[0], ds)
    assert caught.value.code == "bad_rescale"


def test_the_encoding_of_a_file_without_meta_information_is_known(tmp_path: Any) -> None:
    ds = image()
    expected = ds.pixel_array.copy()
    Dataset(ds).save_as(tmp_path / "bare", implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(decode_pixels(dcmread(tmp_path / "bare", force=True))[0], expected)


def test_a_number_of_frames_that_is_no_number_is_one() -> None:
    assert decode_pixels(image(NumberOfFrames="")).shape == (1, 8, 10)


def test_formats_differ_by_what_changes_the_values() -> None:
    plain = image()
    assert pixel_format(plain, plain) == pixel_format(*[twelve_bits()] * 2)
    for other in (image(PixelRepresentation=1), image(RescaleSlope=1, RescaleIntercept=0),
                  image(PhotometricInterpretation="MONOCHROME1")):  # fmt: skip
        assert pixel_format(plain, plain) != pixel_format(other, other)
