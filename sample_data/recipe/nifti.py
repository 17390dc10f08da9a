"""Write NIfTI files that are the same byte for byte each time."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from sample_data.recipe.anatomy import Array


def nifti_bytes(voxels: NDArray[np.generic], affine: Array) -> bytes:
    """Encode an uncompressed NIfTI-1 file.

    Parameters
    ----------
    voxels
        Shape (I, J, K) or (I, J, K, T), stored as they are: no scaling.
    affine
        Shape (4, 4), voxel index to RAS+ millimetres; qform and sform, both with code 1, scanner.
    """
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic, from MNI152"
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return bytes(image.to_bytes())


def gzipped(content: bytes) -> bytes:
    """Compress without a time stamp or a file name."""
    buffer = BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(content)
    return buffer.getvalue()


def write_nifti(path: Path, voxels: NDArray[np.generic], affine: Array) -> None:
    """Write a .nii.gz file, making its folder; arguments as in :func:`nifti_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzipped(nifti_bytes(voxels, affine)))
