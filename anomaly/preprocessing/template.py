"""The MNI152 brain template that every scan is registered to.

ICBM 152 nonlinear symmetric 2009a, 1 mm: T1, grey and white matter, from the files of nilearn (no network access).
The images contain the brain only. Source: Fonov et al., NeuroImage 54 (2011) 313-327.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomaly.core.volume import FloatArray, Geometry, MaskArray, Modality
from anomaly.preprocessing.grid import resample, resample_mask

FIELD_OF_VIEW_MM = (160.0, 192.0, 160.0)
CENTRE_MM = (0.0, -18.0, 4.0)
_FILE_NAME = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"

TISSUE_SIGNAL: dict[Modality, tuple[float, float, float]] = {
    Modality.T2W: (0.45, 0.65, 1.0),
    Modality.FLAIR: (0.60, 0.80, 0.15),
    Modality.CT: (0.75, 1.0, 0.25),
}
"""Intensity of white matter, grey matter and CSF, relative to the brightest. T1w has its own template image."""


@dataclass(frozen=True, eq=False)
class Template:
    """The MNI152 brain on one grid. All arrays are ``(I, J, K)``.

    Parameters
    ----------
    t1
        float32, 0 outside the brain, 1 at the brightest.
    grey, white
        float32 share of the tissue in each voxel, 0 to 1.
    mask
        The filled brain, with ventricles and the CSF between the gyri.
    geometry
        The grid, axes along RAS+.
    """

    t1: FloatArray
    grey: FloatArray
    white: FloatArray
    mask: MaskArray
    geometry: Geometry

    @property
    def csf(self) -> FloatArray:
        """Share of each voxel that is brain but neither grey nor white matter."""
        return np.asarray(np.clip(self.mask - self.grey - self.white, 0, 1), dtype=np.float32)

    def contrast(self, modality: Modality) -> FloatArray:
        """Return the brain as a modality shows it, 0 to 1: the T1, or tissue maps times their intensities."""
        if modality not in TISSUE_SIGNAL:
            return self.t1
        white, grey, csf = TISSUE_SIGNAL[modality]
        return np.asarray(white * self.white + grey * self.grey + csf * self.csf, dtype=np.float32)

    def depth_mm(self) -> FloatArray:
        """Return the signed distance to the surface of the brain in millimetres, positive inside."""
        spacing = self.geometry.spacing
        inside = ndimage.distance_transform_edt(self.mask, sampling=spacing)
        outside = ndimage.distance_transform_edt(~self.mask, sampling=spacing)
        half = min(spacing) / 2  # because the surface lies between voxel centres
        return np.where(self.mask, inside - half, half - outside).astype(np.float32)


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Load the template on its own 1 mm grid ``(197, 233, 189)``."""
    t1, geometry = _read("t1")
    grey, white = _read("gm")[0], _read("wm")[0]
    mask = ndimage.binary_fill_holes(t1 > 0)
    return Template(
        _read_only(t1 / t1.max()), _read_only(grey / 255), _read_only(white / 255), _read_only(mask), geometry
    )


@lru_cache(maxsize=8)
def template_on(grid_spacing_mm: float, multiple: int = 16) -> Template:
    """Return the template on the :func:`target_grid` of a spacing; it is cached and read-only."""
    full, grid = load_template(), target_grid(grid_spacing_mm, multiple)
    t1, grey, white = (
        _read_only(resample(image, full.geometry, grid)) for image in (full.t1, full.grey, full.white)
    )
    return Template(t1, grey, white, _read_only(resample_mask(full.mask, full.geometry, grid)), grid)


def target_grid(spacing_mm: float, multiple: int = 16) -> Geometry:
    """Return the template grid of a voxel size: axes along RAS+, covering the brain with a margin.

    Parameters
    ----------
    spacing_mm
        Voxel size in millimetres. 2 mm gives ``(80, 96, 80)``.
    multiple
        Every dimension is a multiple of this, so that networks can downsample it repeatedly.
    """
    i, j, k = (int(np.ceil(round(extent / spacing_mm, 6) / multiple)) * multiple for extent in FIELD_OF_VIEW_MM)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = np.array(CENTRE_MM) - spacing_mm * (np.array([i, j, k]) - 1) / 2
    return Geometry((i, j, k), affine)


def _read(name: str) -> tuple[FloatArray, Geometry]:
    with as_file(files("nilearn.datasets") / "data" / _FILE_NAME.format(name)) as path:
        image = nib.as_closest_canonical(nib.load(path))
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    return voxels, Geometry((voxels.shape[0], voxels.shape[1], voxels.shape[2]), image.affine)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    return array
