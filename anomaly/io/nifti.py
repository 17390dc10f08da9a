"""Read a NIfTI file as a volume. :mod:`anomaly.export.nifti` writes files."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import AffineArray, FloatArray, Geometry, Modality, Volume
from anomaly.io.stored_file import MAX_FILE_BYTES, StoredFile, read_bytes, too_large_error, unreadable_error

SUFFIXES = (".nii", ".nii.gz")
MIN_SPACING_MM = 0.1
MAX_SPACING_MM = 10.0
MAX_VOXELS = 1 << 30

_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, TypeError)


def is_nifti_name(name: str) -> bool:
    """Return whether a file name ends like that of a NIfTI file."""
    return name.lower().endswith(SUFFIXES)


def nifti_stem(name: str) -> str:
    """Return a file name without ``.nii`` or ``.nii.gz``."""
    lower = name.lower()
    return next((name[: -len(suffix)] for suffix in reversed(SUFFIXES) if lower.endswith(suffix)), name)


def read_nifti(
    file: Path | StoredFile, scan_id: str | None = None, modality: Modality = Modality.UNKNOWN
) -> Volume:
    """Read one scan.

    Parameters
    ----------
    file
        ``.nii`` or ``.nii.gz``, on disk or in a zip.
    scan_id
        Name of the scan; by default the file's name without its ending.
    modality
        Modality of the scan.

    Returns
    -------
    Volume
        float32 ``(I, J, K)`` with the file's scaling applied. The geometry is that of the sform or, if there is
        none, of the qform.

    Raises
    ------
    ScanRefusedError
        If the file is damaged, not 3D, not finite or constant, or its geometry is missing or implausible.
    """
    stored = file if isinstance(file, StoredFile) else StoredFile(file)
    image = _open_nifti(stored)
    affine = _read_affine(image)
    voxels = _read_voxels(image)
    geometry = Geometry(voxels.shape, affine)
    check_geometry(geometry)
    check_voxels(voxels)
    return Volume(voxels, geometry, scan_id or nifti_stem(stored.name), modality)


def read_geometry(path: Path) -> Geometry:
    """Read the grid of a NIfTI file, without its voxels."""
    image = _open_nifti(StoredFile(path))
    return Geometry(_shape_3d(image), _read_affine(image))


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a mask ``(I, J, K)``: True where the file is above zero. A mask may be empty."""
    return _read_voxels(_open_nifti(StoredFile(path))) > 0


def check_geometry(geometry: Geometry) -> None:
    """Raise ScanRefusedError if the affine is degenerate or the voxel size is implausible for a head scan."""
    matrix = geometry.affine
    remedy = "convert the scan again from its DICOM files, or correct the affine"
    if not np.isfinite(matrix).all():
        raise ScanRefusedError("absurd_geometry", "an affine that is not finite", "finite numbers", remedy)
    spacing = np.array(geometry.spacing)
    if (spacing < MIN_SPACING_MM).any() or (spacing > MAX_SPACING_MM).any():
        found = "voxels of " + " × ".join(f"{s:.3g}" for s in spacing) + " mm"
        raise ScanRefusedError("absurd_geometry", found, f"{MIN_SPACING_MM} to {MAX_SPACING_MM} mm", remedy)
    volume = abs(float(np.linalg.det(matrix[:3, :3])))
    if volume < 0.25 * float(np.prod(spacing)):
        raise ScanRefusedError("absurd_geometry", "an affine whose axes are nearly parallel",
                               "three independent axes", remedy)  # fmt: skip


def check_voxels(voxels: FloatArray) -> None:
    """Raise ScanRefusedError if voxels are constant or not finite."""
    low, high = float(voxels.min()), float(voxels.max())  # NaN propagates, so this also finds NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        n_bad = int(voxels.size - np.isfinite(voxels).sum())
        raise ScanRefusedError("non_finite", f"{n_bad} voxels that are not numbers", "finite intensities",
                               "replace them, or export the scan again")  # fmt: skip
    if low == high:
        raise ScanRefusedError("constant", f"{low:g} in every voxel", "an image",
                               "check that the export worked")  # fmt: skip


def _open_nifti(file: StoredFile) -> nib.Nifti1Image:
    try:
        image = nib.load(file.path) if not file.member else _from_bytes(file)
    except _READ_ERRORS as error:
        raise unreadable_error(f"a NIfTI file that cannot be opened ({type(error).__name__})") from error
    if not isinstance(image, nib.Nifti1Image):
        raise unreadable_error(f"a {type(image).__name__} under a NIfTI name")
    if image.get_data_dtype().fields is not None or image.get_data_dtype().kind == "c":
        raise ScanRefusedError("not_scalar", "colour or complex voxels", "one number per voxel",
                               "give the scan itself, not a rendered image of it")  # fmt: skip
    if int(np.prod(image.shape, dtype=np.int64)) > MAX_VOXELS:
        raise too_large_error(int(np.prod(image.shape, dtype=np.int64)) * image.get_data_dtype().itemsize)
    return image


def _from_bytes(file: StoredFile) -> SpatialImage:
    content = read_bytes(file)
    if file.name.lower().endswith(".gz"):
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_FILE_BYTES + 1)
    kind = nib.Nifti2Image if content[:4] in {b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"} else nib.Nifti1Image
    return kind.from_bytes(content)


def _shape_3d(image: SpatialImage) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape[:3]) < 2:
        raise ScanRefusedError("not_3d", "an image of shape " + " × ".join(map(str, shape)), "one 3D volume",
                               "give one volume; split a 4D series first")  # fmt: skip
    return shape[0], shape[1], shape[2]


def _read_affine(image: nib.Nifti1Image) -> AffineArray:
    header = image.header
    if int(header["sform_code"]) > 0:
        return np.asarray(header.get_sform(), dtype=np.float64)
    if int(header["qform_code"]) > 0:
        return _qform(header)
    raise ScanRefusedError("missing_geometry", "neither sform nor qform", "a header with an affine",
                           "convert the scan again from its DICOM files")  # fmt: skip


def _qform(header: Any) -> AffineArray:
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise ScanRefusedError("absurd_geometry", "a qform that is not a rotation", "a valid qform or sform",
                               "convert the scan again from its DICOM files") from error  # fmt: skip


def _read_voxels(image: SpatialImage) -> FloatArray:
    shape = _shape_3d(image)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
    except _READ_ERRORS as error:
        raise unreadable_error(f"a NIfTI file that ends early or is damaged ({type(error).__name__})") from error
    return values.reshape(shape, order="A")
