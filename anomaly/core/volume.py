"""A scan in memory: voxels and their geometry.

All positions in the library are RAS+ millimetres: x grows to the subject's right, y to the front (anterior), z to
the top (superior). Arrays are indexed ``(I, J, K)``; ``affine @ (i, j, k, 1)`` is the position in millimetres of
the centre of that voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
AffineArray = npt.NDArray[np.float64]
MaskArray = npt.NDArray[np.bool_]


class Modality(StrEnum):
    """The modality of a scan. The values are BIDS suffixes, except CT and T1ce, T1w after contrast agent."""

    T1W = "T1w"
    T1W_CE = "T1ce"
    T2W = "T2w"
    FLAIR = "FLAIR"
    CT = "CT"
    UNKNOWN = "unknown"

    @property
    def is_ct(self) -> bool:
        """Whether the voxels are Hounsfield units."""
        return self is Modality.CT

    @property
    def without_agent(self) -> Modality:
        """The modality of the same scan without contrast agent."""
        return Modality.T1W if self is Modality.T1W_CE else self


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid and its position in space.

    Parameters
    ----------
    shape
        Number of voxels ``(I, J, K)``.
    affine
        ``(4, 4)`` voxel index → RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: AffineArray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"expected an affine of shape (4, 4), found {affine.shape}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along I, J, K."""
        i, j, k = (float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Size of the field of view in millimetres along I, J, K."""
        i, j, k = (n * s for n, s in zip(self.shape, self.spacing, strict=True))
        return i, j, k

    def to_world(self, indices: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the RAS+ millimetre positions ``(..., 3)`` of voxel indices ``(..., 3)``."""
        return np.asarray(np.asarray(indices) @ self.affine[:3, :3].T + self.affine[:3, 3], dtype=np.float64)

    def to_index(self, points_mm: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the (fractional) voxel indices ``(..., 3)`` of RAS+ millimetre positions ``(..., 3)``."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(np.asarray(points_mm) @ inverse[:3, :3].T + inverse[:3, 3], dtype=np.float64)

    def same_as(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Return whether both grids have the same shape and, within a tolerance, the same affine."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, atol=tolerance_mm))


@dataclass(frozen=True)
class ScanWarning:
    """A problem that the reader of a scan found and that does not prevent its use: the scan is scored and marked.

    Parameters
    ----------
    code
        Stable machine-readable name, e.g. ``"sform_qform"``.
    found, expected, remedy
        One clause each, without patient identifiers.
    """

    code: str
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D scan.

    Parameters
    ----------
    voxels
        float32 ``(I, J, K)``: Hounsfield units for CT, arbitrary units for MR.
    geometry
        The voxel grid; its shape is that of the voxels.
    scan_id
        Pseudonymous name used in every table and file, e.g. ``"sub-01_ses-1_T1w"``.
    modality
        Modality of the scan.
    meta
        Further information, such as the body part in the DICOM header.
    warnings
        Problems that its reader found. The quality checks report each as a warning, which travels to the record of
        the scan.
    """

    voxels: FloatArray
    geometry: Geometry
    scan_id: str
    modality: Modality = Modality.UNKNOWN
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[ScanWarning, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape:
            raise ValueError(f"voxels have shape {self.voxels.shape}, the geometry has {self.geometry.shape}")
        object.__setattr__(self, "voxels", np.asarray(self.voxels, dtype=np.float32))

    def with_voxels(self, voxels: npt.NDArray[Any], geometry: Geometry | None = None) -> Volume:
        """Return the same scan with other voxels and, if given, another grid."""
        return replace(self, voxels=np.asarray(voxels, dtype=np.float32), geometry=geometry or self.geometry)
