"""One asymmetric image in several formats, and changes of its files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK

OBLIQUE = np.array([[-1.9, 0.3, 0.2, 60], [0.3, 1.9, -0.5, -70], [0.2, 0.6, 2.9, -40], [0, 0, 0, 1.0]])


def rotated() -> np.ndarray:
    """Return an affine of a rotation and three voxel sizes, right-handed in RAS."""
    rotation = nib.eulerangles.euler2mat(0.3, -0.2, 0.1)
    return nib.affines.from_matvec(rotation * [1.5, 2.0, 2.5], [-30, 12, 7.5])


def voxels(dtype: type = np.int16) -> np.ndarray:
    """Return ``(9, 8, 7)`` voxels that no flip or turn leaves as they are."""
    return np.random.default_rng(0).normal(500, 90, (9, 8, 7)).astype(dtype)


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    """Write the reference."""
    path.write_bytes(nib.Nifti1Image(data, affine).to_bytes())
    return path


def write_by_itk(path: Path, data: np.ndarray, affine: np.ndarray, compress: bool = False) -> Path:
    """Write an image by ITK, which turns RAS into LPS itself when it reads the reference."""
    reference = write_nifti(path.with_name("reference.nii"), data, affine)
    image = SimpleITK.ReadImage(str(reference))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    SimpleITK.WriteImage(image, str(path), useCompression=compress)
    reference.unlink()
    return path


def data_file(path: Path) -> Path:
    """Return the file that contains the voxels of an image."""
    others = (path.with_name(name) for name in ("scan.raw", "scan.raw.gz", "scan.zraw"))
    return next((other for other in others if other.exists()), path)


def change(path: Path, old: bytes, new: bytes) -> Path:
    """Replace bytes that occur once in a file."""
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path
