"""Decode the pixels of a DICOM image, and refuse those that the header describes wrongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import FloatArray
from anomaly.io.dicom_header import read_number, read_text

StoredValues = npt.NDArray[Any]

_MONOCHROME = {"MONOCHROME1", "MONOCHROME2"}
_JPEG_SYNTAXES = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}
_JPEG_END = b"\xff\xd9"  # the same for JPEG, JPEG-LS and JPEG 2000
_COLOURS = {"PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420"}
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_RESCALE_KEYWORDS = ("RescaleSlope", "RescaleIntercept")


@dataclass(frozen=True)
class PixelFormat:
    """How stored values become numbers; the same for all images of a scan.

    Parameters
    ----------
    photometric
        PhotometricInterpretation.
    is_signed
        PixelRepresentation.
    n_bits
        BitsStored, where the values depend on it; else 0.
    is_rescaled
        Whether the image has a rescale slope and intercept. They may differ between images.
    """

    photometric: str
    is_signed: bool
    n_bits: int
    is_rescaled: bool


def pixel_format(ds: Dataset, rescale: Dataset) -> PixelFormat:
    """Return the pixel format of an image; ``rescale`` is the data set with its rescale slope."""
    photometric, is_signed = (
        read_text(ds, "PhotometricInterpretation"),
        bool(read_number(ds, "PixelRepresentation")),
    )
    depends_on_bits = is_signed or photometric == "MONOCHROME1"
    n_bits = int(read_number(ds, "BitsStored") or 0) if depends_on_bits else 0
    return PixelFormat(photometric, is_signed, n_bits, _rescale_of(rescale) is not None)


def decode_pixels(ds: Dataset) -> StoredValues:
    """Return the stored values ``(frames, rows, columns)``.

    MONOCHROME1 is inverted, so that larger values are brighter. CT is not: its values are Hounsfield units however
    they are displayed.

    Raises
    ------
    ScanRefusedError
        If the image has colours, or its header describes the pixels wrongly.
    ValueError
        If there are no pixels, or their compressed data are cut.
    """
    if not any(keyword in ds for keyword in _PIXEL_KEYWORDS):
        raise ValueError("no pixels")
    _check_scalar(ds)
    _check_bits(ds)
    _complete_transfer_syntax(ds)
    _complete_number_of_frames(ds)
    pixels = ds.pixel_array
    n_frames = int(read_number(ds, "NumberOfFrames") or 1)
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    _check_codestreams(ds, n_frames)
    _check_frames(ds, n_frames, len(pixels))
    _check_excess(ds, n_frames, pixels[0].nbytes)
    _check_unused_bits(ds, pixels.size)
    return _inverted(ds, pixels) if is_inverted(ds) else pixels


def is_inverted(ds: Dataset) -> bool:
    """Return whether larger stored values are darker."""
    return read_text(ds, "PhotometricInterpretation") == "MONOCHROME1" and ds.get("Modality") != "CT"


def rescaled(pixels: StoredValues, rescale: Dataset) -> FloatArray:
    """Return stored values as float32 numbers: rescaled by slope and intercept, or by the modality LUT.

    Raises
    ------
    ScanRefusedError
        If slope or intercept is unreadable, or only one of them is there.
    """
    if rescale.get("ModalityLUTSequence") or _rescale_of(rescale) is not None:
        return np.asarray(apply_modality_lut(pixels, rescale), dtype=np.float32)
    return np.asarray(pixels, dtype=np.float32)


def stored_zero(ds: Dataset, rescale: Dataset) -> float:
    """Return the number that a pixel of which all bits are zero becomes."""
    zero = np.zeros((1, 1), dtype=np.int64)
    return float(rescaled(_inverted(ds, zero) if is_inverted(ds) else zero, rescale)[0, 0])


def rescale_of(rescale: Dataset) -> tuple[float, float]:
    """Return rescale slope and intercept; 1 and 0 if there are none."""
    return _rescale_of(rescale) or (1.0, 0.0)


def _rescale_of(ds: Dataset) -> tuple[float, float] | None:
    slope, intercept = (read_number(ds, keyword) for keyword in _RESCALE_KEYWORDS)
    named = [keyword for keyword in _RESCALE_KEYWORDS if keyword in ds]
    if not named or (len(named) == 2 and all(ds.get_item(k).value in {None, b"", ""} for k in named)):
        return None
    if slope is None or intercept is None or slope == 0:
        raise ScanRefusedError(
            "bad_rescale", "an image whose rescale slope or intercept is missing, zero or unreadable",
            "both, as numbers", "export the original series from the scanner or PACS",
        )  # fmt: skip
    return slope, intercept


def _check_scalar(ds: Dataset) -> None:
    photometric = read_text(ds, "PhotometricInterpretation")
    if read_number(ds, "SamplesPerPixel") in {1, None} and photometric in _MONOCHROME:
        return
    found = f"colour images ({photometric})" if photometric in _COLOURS else "images that are not monochrome"
    raise ScanRefusedError("not_scalar", found, "one number per voxel",
                           "give the scan itself, not a rendered image of it")  # fmt: skip


def _check_bits(ds: Dataset) -> None:
    allocated, stored, high = (read_number(ds, k) for k in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated is None or stored is None:
        return  # an image of floating-point pixels
    if stored > allocated:
        raise _description_error(f"{stored:.0f} bits stored in {allocated:.0f} allocated")
    if high is not None and high != stored - 1:
        raise _description_error(f"high bit {high:.0f} for {stored:.0f} bits stored")


def _complete_transfer_syntax(ds: Dataset) -> None:
    """Name the encoding that the file was read with, if it has no file meta information that names it."""
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in ds.file_meta:
        is_implicit, is_little = ds.original_encoding
        plain = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else plain


def _complete_number_of_frames(ds: Dataset) -> None:
    if "NumberOfFrames" in ds and not (read_number(ds, "NumberOfFrames") or 0) >= 1:
        ds.NumberOfFrames = len(ds.get("PerFrameFunctionalGroupsSequence") or [None])


def _check_codestreams(ds: Dataset, n_frames: int) -> None:
    """Refuse JPEG data without their end marker: some decoders fill what is missing without an error."""
    if ds.file_meta.TransferSyntaxUID not in _JPEG_SYNTAXES:
        return
    for frame in generate_frames(ds.PixelData, number_of_frames=n_frames):
        if not frame.rstrip(b"\0").endswith(_JPEG_END):
            raise ValueError("compressed pixels without their end")


def _check_frames(ds: Dataset, n_frames: int, n_decoded: int) -> None:
    n_groups = len(ds.get("PerFrameFunctionalGroupsSequence") or []) or n_frames
    if not n_frames == n_decoded == n_groups:
        raise _description_error(f"{n_decoded} frames, {n_frames} by their number and {n_groups} by their headers")


def _check_excess(ds: Dataset, n_frames: int, frame_bytes: int) -> None:
    """Refuse more pixels than the header describes; zeros after a single frame are padding."""
    if ds.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in ds:
        return
    excess = ds.PixelData[n_frames * frame_bytes :]
    if len(excess) > 1 and (n_frames > 1 or len(excess) >= frame_bytes or any(excess)):
        raise _description_error(f"{len(excess)} bytes more than rows × columns × frames")


def _check_unused_bits(ds: Dataset, n_pixels: int) -> None:
    """Refuse values in bits above BitsStored; overlays of old images may be there."""
    if ds.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in ds or _has_overlay_in_pixels(ds):
        return
    allocated, stored = int(ds.BitsAllocated), int(ds.BitsStored)
    if stored == allocated or allocated not in {8, 16, 32}:
        return
    order = "<" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
    words = np.frombuffer(ds.PixelData, dtype=f"{order}u{allocated // 8}", count=n_pixels)
    unused = words >> stored
    is_negative = ((words >> (stored - 1)) & 1).astype(bool) & bool(ds.PixelRepresentation)
    sign_extension = (1 << (allocated - stored)) - 1
    if ((unused != 0) & ~(is_negative & (unused == sign_extension))).any():
        raise _description_error(f"values of more than the {stored} bits stored")


def _has_overlay_in_pixels(ds: Dataset) -> bool:
    return any((group, 0x0102) in ds and (group, 0x3000) not in ds for group in range(0x6000, 0x6020, 2))


def _inverted(ds: Dataset, pixels: StoredValues) -> StoredValues:
    highest = (1 << int(ds.BitsStored)) - 1
    return (-1 if int(ds.PixelRepresentation) else highest) - pixels.astype(np.int64)


def _description_error(found: str) -> ScanRefusedError:
    return ScanRefusedError("bad_pixel_description", f"an image with {found}",
                            "pixels as the header describes them", "copy or export the series again")  # fmt: skip
