"""The header of a NIfTI file: what it claims, checked before it is believed.

nibabel reads the fields. It also repairs some of them in silence; here a field that contradicts another or the
standard (https://nifti.nimh.nih.gov/nifti-1) is refused if the voxels or their positions depend on it, and else
reported as a warning.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, Geometry, ScanWarning
from anomaly.io.image_stream import foreign_content_error
from anomaly.io.stored_file import unreadable_error
from anomaly.io.volume_checks import check_geometry, check_shape, missing_geometry_error

N_HEADER_BYTES = {1: 348, 2: 540}
_MIN_VOX_OFFSET = {1: 352, 2: 544}  # in a single file
_SINGLE_MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
_PAIR_MAGIC = {1: b"ni1\0", 2: b"ni2\0\r\n\x1a\n"}
_MAX_AFFINE_DIFFERENCE = 0.1  # of a voxel, between the positions by sform and qform; rounding stays below
_MAX_SPACING_DIFFERENCE = 0.01  # relative, between sform and pixdim
_MAX_XFORM_CODE = 5
_UNITS_OTHER_THAN_MM = {1: "metres", 3: "micrometres"}
_CONVERT_REMEDY = "convert the scan again from its DICOM files"


@dataclass(frozen=True)
class NiftiHeader:
    """A header that was checked.

    Parameters
    ----------
    fields
        As nibabel gives them.
    version
        1 or 2.
    shape
        Number of voxels ``(I, J, K)``.
    vox_offset
        First byte of the voxels in their file.
    """

    fields: nib.Nifti1Header
    version: int
    shape: tuple[int, int, int]
    vox_offset: int

    @property
    def n_voxel_bytes(self) -> int:
        """Number of bytes of the voxels."""
        i, j, k = self.shape
        return i * j * k * int(self.fields.get_data_dtype().itemsize)


def parse_header(start: bytes, is_pair: bool = False) -> NiftiHeader:
    """Parse and check a header.

    Parameters
    ----------
    start
        The first bytes of the file, at least the header.
    is_pair
        Whether the voxels are in a file of their own (``.img``).

    Raises
    ------
    ScanRefusedError
        If this is no NIfTI header, or the image is not one 3D volume of scalars.
    """
    version, byte_order = _version(start)
    _check_magic(start, version, is_pair)
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    fields = kind(start[: N_HEADER_BYTES[version]], byte_order, check=False)
    _check_data_type(fields)
    shape = check_shape(_sizes(fields), fields.get_data_dtype().itemsize)
    _check_scaling(fields)
    return NiftiHeader(fields, version, shape, _vox_offset(fields, version, is_pair))


@np.errstate(invalid="ignore")  # a NaN of another kind makes NumPy warn
def read_affine(header: NiftiHeader) -> AffineArray:
    """Return the affine of the sform or, if there is none, of the qform.

    Raises
    ------
    ScanRefusedError
        If there is neither, or the qform is needed and not valid.
    """
    fields = header.fields
    if int(fields["sform_code"]) > 0:
        return np.asarray(fields.get_sform(), dtype=np.float64)
    if int(fields["qform_code"]) <= 0:
        raise missing_geometry_error("neither sform nor qform", "a header with an affine")
    affine = _qform(fields)
    if affine is None:
        raise ScanRefusedError("absurd_geometry", "a qform that is not a rotation with positive voxel sizes",
                               "a valid qform or sform", _CONVERT_REMEDY)  # fmt: skip
    return affine


@np.errstate(invalid="ignore")
def check_fields(header: NiftiHeader, affine: AffineArray) -> list[ScanWarning]:
    """Return what contradicts itself or the standard in a header, without making it unusable.

    Raises
    ------
    ScanRefusedError
        If the affine is implausible, or sform and qform are mirror images of each other, so that left and right
        are unknown.
    """
    fields = header.fields
    check_geometry(Geometry(header.shape, affine))
    found = [*_scaling_warnings(fields), *_field_warnings(fields)]
    if int(fields["sform_code"]) > 0:
        found += [*_spacing_warnings(fields, affine), *_qform_warnings(header, affine)]
    else:
        found += _unused_sform_warnings(header, affine)
    return found


def _version(start: bytes) -> tuple[int, str]:
    """Return the version and the byte order, both told by sizeof_hdr."""
    for version, n_bytes in N_HEADER_BYTES.items():
        for byte_order in "<>":
            if start[:4] == struct.pack(f"{byte_order}i", n_bytes) and len(start) >= n_bytes:
                return version, byte_order
    if start[344:348] in {_SINGLE_MAGIC[1], _PAIR_MAGIC[1]} or start[4:12] in {_SINGLE_MAGIC[2], _PAIR_MAGIC[2]}:
        raise unreadable_error("a NIfTI header whose field sizeof_hdr is wrong", "348 or 540", _CONVERT_REMEDY)
    if start[:4] in {struct.pack(f"{order}i", n) for order in "<>" for n in N_HEADER_BYTES.values()}:
        raise unreadable_error(f"{len(start)} bytes, less than a NIfTI header")
    raise foreign_content_error(start, "a NIfTI file")


def _check_magic(start: bytes, version: int, is_pair: bool) -> None:
    magic = start[344:348] if version == 1 else start[4:12]
    single, pair = _SINGLE_MAGIC[version], _PAIR_MAGIC[version]
    if magic == (pair if is_pair else single):
        return
    if magic == pair:
        raise unreadable_error("a NIfTI header whose voxels are in another file (magic ni1 or ni2)",
                               "header and voxels in one file", "give the .hdr and .img files")  # fmt: skip
    if magic == single:
        raise unreadable_error("a header of a single NIfTI file (magic n+1 or n+2) under the name of a pair",
                               "a header of a pair", "name the file .nii")  # fmt: skip
    if is_pair and version == 1:
        raise missing_geometry_error("an Analyze 7.5 image, which does not tell left from right",
                                     "a NIfTI header with an affine")  # fmt: skip
    raise unreadable_error("a NIfTI header with a damaged magic string", repr(single.decode()), _CONVERT_REMEDY)


def _check_data_type(fields: Any) -> None:
    try:
        dtype = fields.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise unreadable_error(f"the data type {int(fields['datatype'])}, which is not supported",
                               "a data type of the NIfTI standard", _CONVERT_REMEDY) from error  # fmt: skip
    if dtype.fields is not None or dtype.kind == "c":
        raise ScanRefusedError("not_scalar", "colour or complex voxels", "one number per voxel",
                               "give the scan itself, not a rendered image of it")  # fmt: skip
    if dtype.itemsize == 0:
        raise unreadable_error("no data type", "a data type of the NIfTI standard", _CONVERT_REMEDY)


def _sizes(fields: Any) -> list[int]:
    n_axes = int(fields["dim"][0])
    if not 1 <= n_axes <= 7:
        raise unreadable_error(f"a header with {n_axes} axes", "1 to 7", _CONVERT_REMEDY)
    sizes = [int(n) for n in fields["dim"][1 : n_axes + 1]]
    if min(sizes) < 1:
        raise unreadable_error("a header with axes of " + " × ".join(map(str, sizes)) + " voxels",
                               "positive numbers", _CONVERT_REMEDY)  # fmt: skip
    return sizes


def _vox_offset(fields: Any, version: int, is_pair: bool) -> int:
    offset, lowest = float(fields["vox_offset"]), 0 if is_pair else _MIN_VOX_OFFSET[version]
    if not np.isfinite(offset) or offset != int(offset) or offset < lowest:
        raise unreadable_error(f"voxels at byte {offset:g} (vox_offset)", f"a whole number from {lowest}",
                               _CONVERT_REMEDY)  # fmt: skip
    return int(offset)


def _check_scaling(fields: Any) -> None:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if np.isinf(slope) or np.isinf(intercept) or (np.isnan(intercept) and not np.isnan(slope) and slope != 0):
        raise unreadable_error(f"a scaling of {slope:g} and {intercept:g} (scl_slope, scl_inter)",
                               "finite numbers", _CONVERT_REMEDY)  # fmt: skip


def _scaling_warnings(fields: Any) -> Iterator[ScanWarning]:
    """Yield a warning if there is no scaling where one may be missing.

    A slope of 0 means by the standard that the stored values are the values. AFNI writes it for floating point.
    """
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    is_plain = slope == 0 and intercept == 0 and fields.get_data_dtype().kind == "f"
    if (slope == 0 or np.isnan(slope)) and not is_plain:
        yield ScanWarning("scaling", f"scl_slope {slope:g} and scl_inter {intercept:g}: values are read as stored",
                          "a scaling, such as 1 and 0", "check the intensities of the scan")  # fmt: skip


def _field_warnings(fields: Any) -> Iterator[ScanWarning]:
    dtype = fields.get_data_dtype()
    if int(fields["bitpix"]) != 8 * dtype.itemsize:
        yield ScanWarning("bitpix", f"{int(fields['bitpix'])} bits per voxel for the data type {dtype.name}",
                          f"{8 * dtype.itemsize} bits", _CONVERT_REMEDY)  # fmt: skip
    for name in ("sform_code", "qform_code"):
        if not 0 <= int(fields[name]) <= _MAX_XFORM_CODE:
            yield ScanWarning("xform_code", f"{name} {int(fields[name])}", f"0 to {_MAX_XFORM_CODE}",
                              _CONVERT_REMEDY)  # fmt: skip
    units = _UNITS_OTHER_THAN_MM.get(int(fields["xyzt_units"]) & 7)
    if units:
        yield ScanWarning("units", f"{units} as the unit of length, with voxel sizes as of millimetres",
                          "millimetres", "check the voxel size of the scan")  # fmt: skip


def _spacing_warnings(fields: Any, affine: AffineArray) -> Iterator[ScanWarning]:
    pixdim = np.array(fields["pixdim"][1:4], dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.abs(pixdim - spacing) <= _MAX_SPACING_DIFFERENCE * spacing).all():  # NaN is a difference, too
        yield ScanWarning("pixdim", f"voxels of {_mm(pixdim)} by pixdim and of {_mm(spacing)} by the sform",
                          "one voxel size", "check the voxel size of the scan")  # fmt: skip


def _qform_warnings(header: NiftiHeader, affine: AffineArray) -> Iterator[ScanWarning]:
    """Yield a warning if the qform claims to be valid and is not that of the sform.

    Software that believes the qform would place such a scan elsewhere.
    """
    if int(header.fields["qform_code"]) <= 0:
        return
    qform = _qform(header.fields)
    if qform is None:
        yield ScanWarning("sform_qform", "a qform that is not a rotation, beside a valid sform", "one affine",
                          _CONVERT_REMEDY)  # fmt: skip
        return
    if np.linalg.det(qform[:3, :3]) * np.linalg.det(affine[:3, :3]) < 0:
        raise ScanRefusedError("contradictory_geometry", "an sform and a qform that are mirror images",
                               "one affine", _CONVERT_REMEDY)  # fmt: skip
    if (difference := _difference_mm(header, affine, qform)) > 0:
        yield ScanWarning("sform_qform", f"an sform and a qform that differ by up to {difference:.3g} mm",
                          "one affine", "check the orientation of the scan; the sform is used")  # fmt: skip


def _unused_sform_warnings(header: NiftiHeader, qform: AffineArray) -> Iterator[ScanWarning]:
    """Yield a warning if an sform is there, not declared as valid, and not that of the qform."""
    sform = np.asarray(header.fields.get_sform(), dtype=np.float64)
    if sform[:3].any() and (difference := _difference_mm(header, qform, sform)) > 0:
        found = f"an sform of code 0 that differs from the qform by up to {difference:.3g} mm"
        yield ScanWarning("sform_qform", found, "one affine",
                          "check the orientation of the scan; the qform is used")  # fmt: skip


def _difference_mm(header: NiftiHeader, affine: AffineArray, other: AffineArray) -> float:
    """Return the largest distance of a corner by two affines; 0 for a difference by rounding."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(header.shape) - 1)
    first, second = (Geometry(header.shape, a).to_world(corners) for a in (affine, other))
    difference = float(np.linalg.norm(first - second, axis=1).max())
    return difference if difference > _MAX_AFFINE_DIFFERENCE * min(Geometry(header.shape, affine).spacing) else 0.0


def _qform(fields: Any) -> AffineArray | None:
    """Return the qform, None if it is not valid. The sign of pixdim[0] tells left-handed axes; 0 counts as 1."""
    fields = fields.copy()
    fields["pixdim"][0] = -1 if fields["pixdim"][0] < 0 else 1
    try:
        affine = np.asarray(fields.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    return affine if np.isfinite(affine).all() and (fields["pixdim"][1:4] > 0).all() else None


def _mm(sizes: Any) -> str:
    return " × ".join(f"{size:.4g}" for size in sizes) + " mm"
