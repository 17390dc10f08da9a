"""Maps and masks as NIfTI files on their own grid."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from anomaly.core.files import atomic_path
from anomaly.core.volume import AffineArray, Geometry


def write_nifti(
    path: Path,
    values: npt.NDArray[Any],
    geometry: Geometry,
    dtype: Literal["float32", "int16", "uint8"] = "float32",
) -> None:
    """Write values ``(I, J, K)`` atomically; the same values give the same bytes.

    Parameters
    ----------
    path
        Ends in ``.nii.gz`` (compressed fast, level 1) or ``.nii`` (can be memory-mapped).
    dtype
        ``"int16"`` is scaled so that the largest magnitude is kept to 1 part in 32767 and 0 stays 0.
    """
    if values.shape != geometry.shape:
        raise ValueError(f"values have shape {values.shape}, the geometry says {geometry.shape}")
    content = _encode(values, geometry, dtype)
    with atomic_path(path) as temporary:
        if path.name.endswith(".gz"):
            with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
                packed.write(content)
        else:
            temporary.write_bytes(content)


def _encode(values: npt.NDArray[Any], geometry: Geometry, dtype: str) -> bytes:
    slope = 1.0
    if dtype == "int16":
        slope = float(np.abs(values).max(initial=0.0)) / 32767 or 1.0
        values = np.rint(values / np.float32(slope))
    image = nib.Nifti1Image(np.asarray(values, dtype=dtype), geometry.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=0 if _is_sheared(geometry.affine) else 1)
    content = bytearray(image.to_bytes())
    if slope != 1.0:
        _set_slope(content, slope)
    return bytes(content)


def _set_slope(content: bytearray, slope: float) -> None:
    """Write scl_slope into the header: nibabel itself would quantise a second time."""
    content[112:120] = np.array([slope, 0.0], dtype="<f4").tobytes()


def _is_sheared(affine: AffineArray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
